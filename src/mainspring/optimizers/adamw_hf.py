"""The AdamW of older releases, for runs that were begun with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mainspring.optimizers.by_parameter import ByParameter
from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, read_options


def adamw_hf(request: OptimizerRequest) -> OptimizerSpec:
    """`OlderAdamW`."""
    read_options(request)
    return OlderAdamW, request.adam


class OlderAdamW(ByParameter):
    """AdamW that adds `eps` before the second moment is corrected, and decays the weights after the step.

    Otherwise Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101; `torch.optim.AdamW` is the one to begin with.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay rates of the first and second moment.
        eps: Term for numerical stability.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        # `correct_bias` is in the groups of checkpoints that older releases wrote; none of their options turned it off.
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": True}
        super().__init__(params, defaults)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
        state["step"] += 1
        (first, second), step = group["betas"], state["step"]
        momentum, variance = state["exp_avg"], state["exp_avg_sq"]
        momentum.mul_(first).add_(gradient, alpha=1 - first)
        variance.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        rate = group["lr"] * (1 - second**step) ** 0.5 / (1 - first**step)
        weight.addcdiv_(momentum, variance.sqrt().add_(group["eps"]), value=-rate)
        if group["weight_decay"] > 0:
            weight.add_(weight, alpha=-group["lr"] * group["weight_decay"])
