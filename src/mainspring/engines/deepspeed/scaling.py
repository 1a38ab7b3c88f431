"""The loss scale of fp16, where DeepSpeed divides gradients by another one than they were multiplied with."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class LossScale:
    """What is left to be done of scaling, with the optimizer of one engine.

    DeepSpeed moves the scale before it divides by it: in the update after which it doubles, gradients would be half of theirs.
    Without ZeRO it divides by a scale, and multiplies with none: all gradients would be too small, and none ever clipped.

    Args:
        optimizer: DeepSpeed's; nothing is left to be done for one that scales nothing.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        kind = type(optimizer).__name__
        self._scales = kind in _WITHOUT_ZERO and bool(optimizer.loss_scale_config.use_grad_scaling)
        self._has_scaled_norm = self._scales and kind == _UNFUSED
        self._scale = 1.0
        if hasattr(optimizer, "_update_scale"):
            self._hold()

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        return loss.float() * self._optimizer.loss_scale if self._scales else loss

    def unscaled(self, norm: Any) -> Any:
        """The norm of the gradients, of what DeepSpeed says it was in the last step."""
        return norm / self._scale if self._has_scaled_norm and norm is not None else norm

    def _hold(self) -> None:
        """The scale moves when a step is over."""
        optimizer = self._optimizer
        step, update = optimizer.step, optimizer._update_scale

        def step_first(*args: Any, **kwargs: Any) -> Any:
            found: list[bool] = []
            self._scale, optimizer._update_scale = float(optimizer.loss_scale), found.append
            try:
                return step(*args, **kwargs)
            finally:
                optimizer._update_scale = update
                for overflowed in found:
                    update(overflowed)

        optimizer.step = step_first


_UNFUSED = "FP16_UnfusedOptimizer"
_WITHOUT_ZERO = (_UNFUSED, "FP16_Optimizer")
"""DeepSpeed's optimizers at stage 0, in half precision; the first has its norm from scaled gradients."""
