"""AdamW whose states have chosen number formats, with Kahan summation for weights in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mainspring.optimizers.by_parameter import ByParameter
from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, boolean, read_options


def any_precision(request: OptimizerRequest) -> OptimizerSpec:
    """`AnyPrecisionAdamW`."""
    own = {
        "use_kahan_summation": False,
        "momentum_dtype": torch.float32,
        "variance_dtype": torch.float32,
        "compensation_buffer_dtype": torch.bfloat16,
    }
    given = read_options(
        request,
        use_kahan_summation=boolean,
        momentum_dtype=number_format,
        variance_dtype=number_format,
        compensation_buffer_dtype=number_format,
    )
    return AnyPrecisionAdamW, {**request.adam, **own, **given}


def number_format(text: str) -> torch.dtype:
    """The floating-point dtype of that name, such as `bfloat16`."""
    found = getattr(torch, text.removeprefix("torch."), None)
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError("not a floating-point dtype")
    return found


class AnyPrecisionAdamW(ByParameter):
    """AdamW with states of any floating-point dtype.

    With weights in bfloat16, updates below their last bit would be lost. Kahan summation keeps what was lost and adds it
    to the next update: W. Kahan, *Further Remarks on Reducing Truncation Errors*, CACM 8 (1), 1965; for bfloat16 training
    P. Zamirai et al., https://arxiv.org/abs/2010.06192.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay rates of the first and second moment.
        eps: Term for numerical stability.
        weight_decay: Decoupled weight decay.
        use_kahan_summation: Whether what rounding takes from the weights is kept for the next update.
        momentum_dtype: Of the first moment.
        variance_dtype: Of the second moment.
        compensation_buffer_dtype: Of what rounding took.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        use_kahan_summation: bool = False,
        momentum_dtype: torch.dtype = torch.float32,
        variance_dtype: torch.dtype = torch.float32,
        compensation_buffer_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}: none may be negative, and the betas "
                "lie below 1"
            )
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "use_kahan_summation": use_kahan_summation,
            "momentum_dtype": momentum_dtype,
            "variance_dtype": variance_dtype,
            "compensation_buffer_dtype": compensation_buffer_dtype,
        }
        super().__init__(params, defaults)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if gradient.is_sparse:
            raise RuntimeError("AnyPrecisionAdamW takes no sparse gradients: use an embedding with sparse=False")
        state = self.state[weight] or self._begin(weight, group)
        state["step"] += 1
        (first, second), step = group["betas"], state["step"]
        momentum, variance = state["exp_avg"], state["exp_avg_sq"]
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        momentum.lerp_(gradient.to(momentum.dtype), 1 - first)
        squares = gradient.to(variance.dtype)
        variance.mul_(second).addcmul_(squares, squares, value=1 - second)
        scale = variance.sqrt().div_((1 - second**step) ** 0.5).add_(group["eps"])
        rate = -group["lr"] / (1 - first**step)
        if group["use_kahan_summation"]:
            _add_compensated(weight, (momentum / scale).mul_(rate), state["compensation"])
        else:
            weight.addcdiv_(momentum.to(weight.dtype), scale.to(weight.dtype), value=rate)

    def _begin(self, weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.state[weight]
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(weight, dtype=group["momentum_dtype"])
        state["exp_avg_sq"] = torch.zeros_like(weight, dtype=group["variance_dtype"])
        if group["use_kahan_summation"]:
            state["compensation"] = torch.zeros_like(weight, dtype=group["compensation_buffer_dtype"])
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state. Its tensors keep their own formats; torch's optimizers give them their parameter's."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for number, weight in zip(saved["params"], group["params"], strict=True):
                for key, value in state_dict["state"].get(number, {}).items():
                    if isinstance(value, Tensor):
                        self.state[weight][key] = value.to(weight.device, copy=True)


def _add_compensated(weight: Tensor, update: Tensor, lost: Tensor) -> None:
    """Add an update, and what the last one lost; keep what this one loses in `lost`."""
    lost.add_(update.to(lost.dtype))
    before = weight.clone()
    weight.add_(lost.to(weight.dtype))
    lost.add_((before - weight).to(lost.dtype))
