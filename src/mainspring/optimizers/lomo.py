"""LOMO and AdaLomo: optimizers that update each parameter inside the backward pass, and keep no gradients.

K. Lv et al.: *Full Parameter Fine-tuning for Large Language Models with Limited Resources*,
https://arxiv.org/abs/2306.09782, and *AdaLomo*, https://arxiv.org/abs/2310.10195.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lomo_optim
import torch
from torch import Tensor

from mainspring.errors import OptionError, Problem
from mainspring.optimizers.in_backward import BackwardPass, UpdatesInBackward, require_backward
from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, read_options


def lomo(request: OptimizerRequest) -> OptimizerSpec:
    """`Lomo`, that of lomo-optim."""
    return Lomo, _kwargs(request)


def adalomo(request: OptimizerRequest) -> OptimizerSpec:
    """`AdaLomo`, that of lomo-optim."""
    if not torch.cuda.is_available():
        why = "AdaLomo's updates are written for CUDA, and there is no such device"
        raise OptionError([Problem("optim", request.name, why, "use 'lomo'")])
    return AdaLomo, _kwargs(request)


def _kwargs(request: OptimizerRequest) -> dict[str, Any]:
    given = read_options(request, clip_grad_value=float)
    kwargs = {"model": request.model, "lr": request.learning_rate}
    if request.complete and request.weight_decay:
        kwargs["weight_decay"] = request.weight_decay
    if request.complete and request.max_grad_norm:
        kwargs["clip_grad_norm"] = request.max_grad_norm
    return {**kwargs, **given}


class _InBackward(UpdatesInBackward):
    """Lets the engine call one of lomo-optim's optimizers, with the learning rate that the schedule has set.

    Clipping needs the norm of all gradients before the first parameter is updated: with `clip_grad_norm` every loss is
    backpropagated twice.
    """

    model: Any
    clip_grad_norm: float | None
    grad_norms: Any
    gather_norm: bool
    grad_norm: Callable[[Tensor], None]
    fused_backward: Callable[[Tensor, float], None]
    _pass: BackwardPass
    _acted = False
    _squares: Tensor | None = None

    def fuse_update(self) -> Callable[[Any], Any]:
        """The hook of every parameter, which acts within `backward` alone and notes the gradients' norms."""
        update = super().fuse_update()  # type: ignore[misc]

        def watched(value: Any) -> Any:
            if self._pass.is_under_way:
                if not self.gather_norm:
                    self._note_gradients()
                update(value)
            return value

        self._pass = BackwardPass()
        return watched

    @torch.no_grad()
    def _note_gradients(self) -> None:
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                self._pass.note(parameter)
                square = parameter.grad.float().square().sum()
                self._squares = square if self._squares is None else self._squares + square.to(self._squares.device)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Backpropagate `loss`, a scalar, and update every parameter that it reaches."""
        if kwargs:
            raise TypeError(f"lomo-optim's backward pass takes no keywords, and was given {', '.join(kwargs)}")
        self._acted = True
        with self._pass:
            if self.clip_grad_norm:
                self.grad_norm(loss)
            self.fused_backward(loss, float(self.param_groups[0]["lr"]))

    def take_grad_norm(self) -> Tensor:
        """The norm of all gradients since this was last asked, before clipping, 0-d."""
        square, self._squares = self._squares, None
        return torch.zeros(()) if square is None else square.sqrt()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Nothing is left to be done: the backward pass has updated every parameter."""
        require_backward(self._acted)
        self._acted = False
        return None if closure is None else closure()


class Lomo(_InBackward, lomo_optim.Lomo):
    """`lomo_optim.Lomo`, called by the engine."""


class AdaLomo(_InBackward, lomo_optim.AdaLomo):
    """`lomo_optim.AdaLomo`, called by the engine; its averages are in its state dict."""

    _AVERAGES = ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col")

    def state_dict(self) -> dict[str, Any]:
        """Groups, number of updates, and averages by parameters' names."""
        averages = {name: dict(getattr(self, name)) for name in self._AVERAGES}
        return {**super().state_dict(), "step_num": self.step_num, "averages": averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.step_num = state_dict["step_num"]
        for name in self._AVERAGES:
            for key, value in getattr(self, name).items():
                value.copy_(state_dict["averages"][name][key])
