"""Gradients that lie in DeepSpeed's buffers rather than with the parameters."""

from __future__ import annotations

from typing import Any


def forget_gradients(engine: Any) -> None:
    """Forget what micro-batches have left whose update will not come.

    Each kind of optimizer of DeepSpeed's keeps them elsewhere; its own `zero_grad` forgets those of the parameters only.
    """
    engine.zero_grad()
    optimizer = engine.optimizer
    optimizer.zero_grad()
    if hasattr(optimizer, "micro_step_id"):
        _forget_pieces(optimizer)


def _forget_pieces(optimizer: Any) -> None:
    """The sums of ZeRO: what the next backward pass finds of the first micro-batch is overwritten, not added to."""
    for kept in ("averaged_gradients", "all_grad_tensors"):
        getattr(optimizer, kept, {}).clear()
    optimizer.reset_cpu_buffers()
    optimizer.micro_step_id = _FIRST.get(type(optimizer).__name__, 0)


_FIRST = {"DeepSpeedZeroOptimizer": -1}
"""Where the count of micro-batches begins: stages 1 and 2 add one before a backward pass, stage 3 after it."""
