"""What computes the loss of a linear layer without all of its logits."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional

from mainspring.chunked_loss.gradients import ChunkedCrossEntropy, How
from mainspring.loss import IGNORE_INDEX


def summed_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """The sum of cross-entropies between a linear layer's logits and classes.

    torch's own function computes it where it is there (2.13) and the products are in float32: of half precision it rounds
    the sum as well. Then Liger's, on a GPU with that package; else the one beside.

    Args:
        hidden: Of shape (rows, width).
        weight: Of shape (classes, width).
        bias: Of shape (classes,), or None.
        targets: Classes, of shape (rows,); -100 does not count.
        softcap: Logits z become softcap * tanh(z / softcap); None: they are as they are.

    Returns:
        The sum, 0-d.
    """
    dtype = product_dtype(weight)
    hidden = hidden.to(dtype)
    with torch.autocast(weight.device.type, enabled=False):
        if softcap is None and dtype == weight.dtype == torch.float32 and hasattr(functional, "linear_cross_entropy"):
            return by_torch(hidden, weight, bias, targets)
        if weight.is_cuda and importlib.util.find_spec("liger_kernel") is not None:
            return by_liger(hidden, weight.to(dtype), bias, targets, softcap)
        return by_chunks(hidden, weight, bias, targets, softcap)


def product_dtype(weight: Tensor) -> torch.dtype:
    """What the layer's product would be computed in here: autocast's dtype, or the weights' own."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def rows_of_chunk(width: int) -> int:
    """How many rows have their logits at once: in float32 they take a quarter of the memory of the weights' gradient."""
    return max(64, width // 4)


def by_torch(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """By `torch.nn.functional`: without a size of chunks it makes all logits, and one that it finds itself takes ten times as long."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows_of_chunk(hidden.shape[-1]))
    loss: Tensor = functional.linear_cross_entropy(
        hidden, weight, targets, linear_bias=bias, reduction="sum", ignore_index=IGNORE_INDEX, options=options
    )
    return loss


def by_liger(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None) -> Tensor:
    """Liger's Triton kernel."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(
        hidden,
        weight,
        targets,
        bias=bias,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        softcap=softcap,
        accum_dtype=torch.float32,
    )
    return loss


def by_chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None) -> Tensor:
    """Chunk by chunk, on any device; products are computed in the precision of the hidden states."""
    how = How(rows_of_chunk(hidden.shape[-1]), hidden.dtype, softcap, torch.is_grad_enabled())
    loss: Tensor = ChunkedCrossEntropy.apply(hidden, weight, bias, targets, how)  # type: ignore[no-untyped-call]
    return loss
