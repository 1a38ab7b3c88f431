"""Adafactor: adaptive learning rates with the memory of a factored second moment.

Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235; the numbers of equations and sections below are the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Group = dict[str, Any]
State = dict[str, Any]


class Adafactor(Optimizer):
    """The optimizer of the paper's algorithm 4, with a momentum and decoupled weight decay if asked for.

    The second moment of a parameter with two dimensions or more is kept as its means over rows and over columns of the
    last two. Half-precision parameters are updated in 32 bits and rounded back.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate; None with `relative_step`.
        eps: Added to the squared gradient (eps 1), and the lowest scale of a parameter (eps 2).
        clip_threshold: Largest root mean square of an update (d, section 6).
        decay_rate: Exponent c of the second moment's decay rate 1 - t^c (section 7.2).
        beta1: Decay rate of the first moment; None keeps none.
        weight_decay: Times the learning rate, the share by which parameters shrink at each update.
        scale_parameter: Multiply the learning rate by the parameter's root mean square (section 8).
        relative_step: Use the learning rate min(0.01, 1 / sqrt(t)) (section 9).
        warmup_init: With `relative_step`, start from 1e-6 t in place of 0.01.

    Raises:
        ValueError: A given `lr` together with `relative_step`, or `warmup_init` without it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
    ) -> None:
        if lr is not None and relative_step:
            raise ValueError(f"lr={lr}: relative_step=True computes its own; leave lr out or set relative_step=False")
        if warmup_init and not relative_step:
            raise ValueError("warmup_init=True: it shapes the relative step; set relative_step=True or leave it out")
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Evaluates the model anew and returns the loss.

        Returns:
            The closure's loss, None without one.

        Raises:
            RuntimeError: A gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, group, self.state[parameter])
        return loss


def _update(parameter: Tensor, group: Group, state: State) -> None:
    if parameter.grad is None or parameter.grad.is_sparse:
        raise RuntimeError("Adafactor cannot use sparse gradients; build the embedding with sparse=False")
    grad = parameter.grad.float() if _is_half(parameter.grad) else parameter.grad
    value = parameter.float() if _is_half(parameter) else parameter
    _prepare(state, grad, group)
    state["step"] += 1
    state["RMS"] = _rms(value)
    rate = learning_rate(group, state)
    update = _normalised(grad, group, state)
    update.div_((_rms(update) / group["clip_threshold"]).clamp_(min=1.0)).mul_(rate)
    if group["beta1"] is not None:
        momentum = state["exp_avg"]
        update = momentum.mul_(group["beta1"]).add_(update, alpha=1 - group["beta1"])
    if group["weight_decay"] != 0:
        value.add_(value, alpha=-group["weight_decay"] * rate)
    value.sub_(update)
    if value is not parameter:
        parameter.copy_(value)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _prepare(state: State, grad: Tensor, group: Group) -> None:
    """Create the state at the first update; bring its moments to the gradient's device and type later.

    (Loading a state casts it to the parameter's type, which may be a half.)
    """
    if state:
        for name in ("exp_avg", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"):
            if name in state:
                state[name] = state[name].to(grad)
        return
    state["step"] = 0
    if group["beta1"] is not None:
        state["exp_avg"] = torch.zeros_like(grad)
    if grad.dim() >= 2:
        state["exp_avg_sq_row"] = grad.new_zeros(grad.shape[:-1])
        state["exp_avg_sq_col"] = grad.new_zeros(grad.shape[:-2] + grad.shape[-1:])
    else:
        state["exp_avg_sq"] = torch.zeros_like(grad)
    state["RMS"] = 0


def _rms(tensor: Tensor) -> Tensor:
    """Root mean square of all elements, 0-d."""
    norm: Tensor = torch.linalg.vector_norm(tensor)
    return norm / math.sqrt(tensor.numel())


def _relative_step(group: Group, state: State) -> float:
    """rho_t = min(bound, 1 / sqrt(t)), section 9."""
    bound = 1e-6 * state["step"] if group["warmup_init"] else 1e-2
    return min(bound, 1.0 / math.sqrt(state["step"]))


def learning_rate(group: Group, state: State) -> Any:
    """The rate alpha_t that a parameter is updated with: rho_t or `lr`, times the parameter's scale if that is on.

    Args:
        group: The parameter's group.
        state: Its state, with `step` and `RMS` of the present update.

    Returns:
        A float, or a 0-d tensor on the parameter's device when the parameter's scale enters.
    """
    rate = _relative_step(group, state) if group["relative_step"] else group["lr"]
    if not group["scale_parameter"]:
        return rate
    return torch.as_tensor(state["RMS"]).clamp(min=group["eps"][1]) * rate


def _normalised(grad: Tensor, group: Group, state: State) -> Tensor:
    """U_t = G_t / sqrt(V_t), with V_t factored over the last two dimensions (algorithms 4 and 5)."""
    beta2 = 1.0 - math.pow(state["step"], group["decay_rate"])
    squared = grad.square().add_(group["eps"][0])
    if grad.dim() < 2:
        second: Tensor = state["exp_avg_sq"].mul_(beta2).add_(squared, alpha=1.0 - beta2)
        return second.rsqrt().mul_(grad)
    rows = state["exp_avg_sq_row"].mul_(beta2).add_(squared.mean(-1), alpha=1.0 - beta2)
    columns = state["exp_avg_sq_col"].mul_(beta2).add_(squared.mean(-2), alpha=1.0 - beta2)
    by_row = (rows / rows.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    root: Tensor = by_row.mul(columns.unsqueeze(-2).rsqrt())
    return root.mul_(grad)


class AdafactorSchedule(LambdaLR):
    """Shows the rate that Adafactor computes for itself where a scheduler is expected, as in logs.

    Args:
        optimizer: An `Adafactor` that computes its own rate.
        initial_lr: What is shown before the first update.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float = 0.0) -> None:
        for group in optimizer.param_groups:
            group["initial_lr"] = initial_lr
        super().__init__(optimizer, _initial)
        for group in optimizer.param_groups:
            del group["initial_lr"]

    def get_lr(self) -> list[Any]:
        """The present rate of each group's first parameter, the initial one before the first update."""
        groups = [g for g in self.optimizer.param_groups if g["params"] and g["params"][0].grad is not None]
        rates = [learning_rate(group, self.optimizer.state[group["params"][0]]) for group in groups]
        return rates or list(self.base_lrs)


def get_adafactor_schedule(optimizer: Optimizer, initial_lr: float = 0.0) -> AdafactorSchedule:
    """`AdafactorSchedule` of an optimizer."""
    return AdafactorSchedule(optimizer, initial_lr)


def _initial(_: int) -> float:
    return 1.0
