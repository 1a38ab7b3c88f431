"""Gradients that lie in DeepSpeed's buffers rather than with the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def norm_before_step(engine: Any) -> Tensor:
    """The norm of an update's gradients, as DeepSpeed's step will find it; NaN where it is not finite. All processes ask.

    Args:
        engine: The `DeepSpeedEngine`, behind the last backward pass of the update.
    """
    optimizer = engine.optimizer
    scaled = torch.as_tensor(_scaled_norm(optimizer), dtype=torch.float64)
    norm = scaled / float(getattr(optimizer, "loss_scale", 1.0) or 1.0)
    return torch.where(norm.isfinite() & (norm >= 0), norm, torch.full_like(norm, float("nan")))  # -1 says as much


def _scaled_norm(optimizer: Any) -> Any:
    from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors

    if hasattr(optimizer, "_get_norm_groups"):  # stage 3
        return combine_grad_norm_groups(optimizer._get_norm_groups())
    if hasattr(optimizer, "scaled_global_norm"):  # stages 1 and 2
        optimizer._wait_for_offload_copies()
        return optimizer.scaled_global_norm()
    if hasattr(optimizer, "get_grads_for_norm"):  # bf16, whose gradients are summed in float32
        gradients, _ = optimizer.get_grads_for_norm()
        return get_global_norm_of_tensors(input_tensors=gradients, mpu=optimizer.mpu)
    groups = getattr(optimizer, "fp16_groups", None) or optimizer.bf16_groups
    return torch.nn.utils.get_total_norm([p.grad for group in groups for p in group if p.grad is not None])


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
    forget_sums(optimizer)
    optimizer.micro_step_id = _FIRST.get(type(optimizer).__name__, 0)
    optimizer._epilogue_ran_this_backward = False  # else stage 3 would count the next forward pass as a second one


def forget_sums(optimizer: Any) -> None:
    """Set the gradients of an update to zero that ZeRO keeps from one to the next.

    It overwrites those of the parameters that have a gradient again; the others would be stepped with what is left. Gradients
    that rest on a disk stay.

    Args:
        optimizer: DeepSpeed's, behind a step.
    """
    if getattr(optimizer, "zenflow", False):  # its host may still be stepping with them
        return
    kept = [getattr(optimizer, "grad_partitions_flat_buffer", None)]  # stage 3
    kept += getattr(optimizer, "accumulated_grads_in_cpu", {}).values()
    for rows in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
        kept += [row.grad for row in getattr(optimizer, rows, ())]  # None, unless the host steps
    for gradient in kept:
        if gradient is not None:
            gradient.zero_()


_FIRST = {"DeepSpeedZeroOptimizer": -1}
"""Where the count of micro-batches begins: stages 1 and 2 add one before a backward pass, stage 3 after it."""
