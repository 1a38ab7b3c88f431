"""An optimizer inside the backward pass: each parameter is updated as soon as its gradient is there, which is then freed.

So the gradients of one layer are in memory at a time, instead of those of all: K. Lv et al.,
https://arxiv.org/abs/2306.09782, for any optimizer that looks at one parameter at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mainspring.optimizers.plain_states import keep_plain

Maker = Callable[..., Optimizer]


class UpdatesInBackward(Optimizer):
    """What the engine asks of an optimizer that acts inside the backward pass.

    It acts in `backward` alone: another backward pass through the same model, such as one of the user's own, leaves
    gradients as ever. `step` has nothing left to do.
    """

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Backpropagate `loss`, a scalar, and update every parameter that it reaches."""
        raise NotImplementedError

    def take_grad_norm(self) -> Tensor:
        """The norm of all gradients since this was last asked, 0-d."""
        raise NotImplementedError


class BackwardPass:
    """The context of a backward pass in which parameters are updated, each once.

    Attributes:
        is_under_way: Whether the body is running.
    """

    def __init__(self) -> None:
        self.is_under_way = False
        self._updated: set[int] = set()

    def __enter__(self) -> None:
        self.is_under_way = True
        self._updated.clear()

    def __exit__(self, *error: object) -> None:
        self.is_under_way = False

    def note(self, parameter: Tensor) -> None:
        """A parameter is about to be updated.

        Raises:
            RuntimeError: It was already: what came then was only a part of its gradient.
        """
        if id(parameter) in self._updated:
            raise RuntimeError(
                f"the gradient of a parameter of shape {tuple(parameter.shape)} comes in parts, and an optimizer inside "
                "the backward pass has acted on the first: blocks that share it recompute their activations by "
                "themselves; set activation_checkpointing_kwargs={'use_reentrant': False}"
            )
        self._updated.add(id(parameter))


class OptimizerInBackward(UpdatesInBackward):
    """One optimizer per parameter, each called by the backward pass.

    The hyper-parameters are those of this optimizer's own groups, which a schedule changes as usual. Its state dict is
    that of the ordinary optimizer over the same groups: either loads what the other saved.

    Args:
        params: Parameters, or groups of them.
        optimizer: Class of the optimizers.
        **kwargs: Its keyword arguments.
    """

    def __init__(self, params: Iterable[Any], optimizer: Maker, **kwargs: Any) -> None:
        super().__init__(params, {})
        self._of: dict[Tensor, Optimizer] = {}
        self._group_of: dict[Tensor, dict[str, Any]] = {}
        self._handed_on: dict[Tensor, dict[str, Any]] = {}  # what its own optimizer was last given of its group
        self._squares: Tensor | None = None  # of the gradients since `take_grad_norm`, summed up
        self._pass = BackwardPass()
        self._acted = False
        for group in self.param_groups:
            given = _without_parameters(group)
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self._take(parameter, group, keep_plain(optimizer([{**given, "params": [parameter]}], **kwargs)))

        # What a group without trainable parameters has too, and what schedules read of the optimizer.
        self.defaults = next((dict(one.defaults) for one in self._of.values()), {})
        for group in self.param_groups:
            group.update({key: value for key, value in self.defaults.items() if key not in group})

    def _take(self, parameter: Tensor, group: dict[str, Any], one: Optimizer) -> None:
        self._of[parameter], self._group_of[parameter] = one, group
        group.update({key: value for key, value in one.param_groups[0].items() if key not in group})
        self._handed_on[parameter] = _without_parameters(group)
        parameter.register_post_accumulate_grad_hook(self._update)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Backpropagate `loss`, a scalar, and update every parameter that it reaches."""
        self._acted = True
        with self._pass:
            loss.backward(**kwargs)

    @torch.no_grad()
    def _update(self, parameter: Tensor) -> None:
        if not self._pass.is_under_way:
            return
        self._pass.note(parameter)
        assert parameter.grad is not None
        square = parameter.grad.float().square().sum()
        self._squares = square if self._squares is None else self._squares + square.to(self._squares.device)
        one = self._of[parameter]
        self._hand_on(parameter)
        one.step()
        parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Nothing is left to be done: the backward pass has updated every parameter.

        Raises:
            RuntimeError: It has not, because it did not go through `backward`.
        """
        require_backward(self._acted)
        self._acted = False
        return None if closure is None else closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing is left to be forgotten."""

    def take_grad_norm(self) -> Tensor:
        """The norm of all gradients since this was last asked, 0-d."""
        square, self._squares = self._squares, None
        return torch.zeros(()) if square is None else square.sqrt()

    def _hand_on(self, parameter: Tensor) -> None:
        """Give a parameter's own optimizer what a schedule or the user has set since; what it counts there stays."""
        changed = self._changed(parameter)
        self._of[parameter].param_groups[0].update(changed)
        self._handed_on[parameter].update(changed)

    def _changed(self, parameter: Tensor) -> dict[str, Any]:
        known = self._handed_on[parameter]
        hyper = _without_parameters(self._group_of[parameter])
        # A tensor is set in place, so that it does not show whether it was.
        return {key: value for key, value in hyper.items() if isinstance(value, Tensor) or known.get(key) != value}

    def state_dict(self) -> dict[str, Any]:
        """State and groups, as the ordinary optimizer would say them."""
        groups: list[dict[str, Any]] = []
        states: dict[int, Any] = {}
        number = 0
        for group in self.param_groups:
            numbers = list(range(number, number + len(group["params"])))
            groups.append({**self._hyper(group), "params": numbers})
            for index, parameter in zip(numbers, group["params"], strict=True):
                if parameter in self._of and (own := self._of[parameter].state_dict()["state"]):
                    states[index] = own[0]
            number += len(numbers)
        return {"state": states, "param_groups": groups}

    def _hyper(self, group: dict[str, Any]) -> dict[str, Any]:
        """All of a group but its parameters, and what their optimizers count in theirs."""
        first = next((parameter for parameter in group["params"] if parameter in self._of), None)
        if first is None:
            return _without_parameters(group)
        (own,) = self._of[first].state_dict()["param_groups"]
        return {**_without_parameters(own), **self._changed(first)}

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
            hyper = _without_parameters(saved)
            group.update({key: value for key, value in hyper.items() if key in group or key == "initial_lr"})
            for index, parameter in zip(saved["params"], group["params"], strict=True):
                if parameter in self._of:
                    state = {0: state_dict["state"][index]} if index in state_dict["state"] else {}
                    self._of[parameter].load_state_dict({"state": state, "param_groups": [{**hyper, "params": [0]}]})

    def optimizers(self) -> Iterator[Optimizer]:
        """Those of the parameters, in order."""
        return iter(self._of.values())


def _without_parameters(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def into_backward(cls: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A class and its keywords, to act inside the backward pass; what does so already comes back as it is."""
    with contextlib.suppress(TypeError):
        if issubclass(cls, UpdatesInBackward):
            return cls, kwargs
    return OptimizerInBackward, {"optimizer": cls, **kwargs}


def require_backward(acted: bool) -> None:
    """Refuse a step without a backward pass of the optimizer's own, which would change nothing without a word.

    Raises:
        RuntimeError: There was none.
    """
    if not acted:
        raise RuntimeError(
            "this optimizer acts inside the backward pass, and there was none: call accelerator.backward(loss), which "
            "knows it, instead of loss.backward()"
        )
