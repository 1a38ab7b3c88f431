"""An optimizer inside the backward pass: each parameter is updated as soon as its gradient is there, which is then freed.

So the gradients of one layer are in memory at a time, instead of those of all: K. Lv et al.,
https://arxiv.org/abs/2306.09782, for any optimizer that looks at one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Maker = Callable[[list[dict[str, Any]]], Optimizer]


class OptimizerInBackward(Optimizer):
    """One optimizer per parameter, each called by the backward pass.

    The hyper-parameters are those of this optimizer's own groups, which a schedule changes as usual. Its state dict is
    that of the ordinary optimizer over the same groups: either loads what the other saved.

    Args:
        params: Parameters, or groups of them.
        optimizer: Class of the optimizers.
        **kwargs: Its keyword arguments.

    Attributes:
        squared_norm: Sum of the squares of the gradients since `take_grad_norm`, 0-d.
    """

    def __init__(self, params: Iterable[Any], optimizer: Callable[..., Optimizer], **kwargs: Any) -> None:
        super().__init__(params, {})
        self._of: dict[Tensor, Optimizer] = {}
        self._group_of: dict[Tensor, dict[str, Any]] = {}
        self.squared_norm: Tensor | None = None
        for group in self.param_groups:
            given = {key: value for key, value in group.items() if key != "params"}
            for parameter in group["params"]:
                one = optimizer([{**given, "params": [parameter]}], **kwargs)
                self._of[parameter], self._group_of[parameter] = one, group
                group.update({key: value for key, value in one.param_groups[0].items() if key not in group})
                parameter.register_post_accumulate_grad_hook(self._update)

    @torch.no_grad()
    def _update(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        square = parameter.grad.float().square().sum()
        self.squared_norm = (
            square if self.squared_norm is None else self.squared_norm + square.to(self.squared_norm.device)
        )
        one = self._of[parameter]
        own = one.param_groups[0]
        own.update({key: value for key, value in self._group_of[parameter].items() if key != "params"})
        one.step()
        parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Nothing is left to be done: the backward pass has updated every parameter."""
        return None if closure is None else closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing is left to be forgotten."""

    def take_grad_norm(self) -> Tensor:
        """The norm of all gradients of the last backward pass, 0-d."""
        square, self.squared_norm = self.squared_norm, None
        return torch.zeros(()) if square is None else square.sqrt()

    def state_dict(self) -> dict[str, Any]:
        """State and groups, as the ordinary optimizer would say them."""
        groups, number = [], 0
        states = {}
        for group in self.param_groups:
            count = len(group["params"])
            numbers = list(range(number, number + count))
            groups.append({**{key: value for key, value in group.items() if key != "params"}, "params": numbers})
            for index, parameter in zip(numbers, group["params"], strict=True):
                if own := self._of[parameter].state_dict()["state"]:
                    states[index] = own[0]
            number += count
        return {"state": states, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this optimizer or the ordinary one saved.

        Raises:
            ValueError: The groups have other sizes.
        """
        groups = state_dict["param_groups"]
        sizes, own = [len(group["params"]) for group in groups], [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise ValueError(f"the saved optimizer has groups of {sizes} parameters, and this one of {own}")
        for group, saved in zip(self.param_groups, groups, strict=True):
            hyper = {key: value for key, value in saved.items() if key != "params"}
            group.update(hyper)
            for index, parameter in zip(saved["params"], group["params"], strict=True):
                state = {0: state_dict["state"][index]} if index in state_dict["state"] else {}
                self._of[parameter].load_state_dict({"state": state, "param_groups": [{**hyper, "params": [0]}]})

    def optimizers(self) -> Iterator[Optimizer]:
        """Those of the parameters, in order."""
        return iter(self._of.values())
