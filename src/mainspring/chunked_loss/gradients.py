"""Cross-entropy of a linear layer, a few rows at a time, with the gradients computed on the way.

With logits z = W h + b, p = softmax(z) and the target y, the loss of a row is logsumexp(z) - z[y], and its gradient in z
is p - onehot(y): all that gradients need of a row's logits is known in the forward pass. So each chunk's logits are made,
used and forgotten, and what is kept is of the size of h, W and b. The idea is that of Liger Kernel (Hsu et al. 2024,
https://arxiv.org/abs/2410.10989, section 3.2) and, per chunk rather than in one kernel, of Wijmans et al. 2024
(https://arxiv.org/abs/2411.09009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mainspring.loss import IGNORE_INDEX

_BLOCK = 16_384
"""Classes whose weights' gradients are added up at a time where they are computed in half precision."""


@dataclass(frozen=True)
class How:
    """How a loss is computed.

    Attributes:
        rows: Rows of a chunk.
        dtype: What products are computed in. Softmax, loss and sums of gradients are in float32 at least.
        softcap: Logits z become softcap * tanh(z / softcap); None: they are as they are.
        differentiates: Whether gradients are wanted.
    """

    rows: int
    dtype: torch.dtype
    softcap: float | None = None
    differentiates: bool = True


class ChunkedCrossEntropy(torch.autograd.Function):
    """The sum of the rows' losses. It can be differentiated once: the gradients are given away, not copied."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: How) -> Tensor:
        """Add up losses and gradients, chunk by chunk.

        Args:
            ctx: Where the gradients are kept.
            hidden: Of shape (rows, width).
            weight: Of shape (classes, width).
            bias: Of shape (classes,), or None.
            targets: Classes, of shape (rows,); -100 does not count.
            how: In what chunks, and in what precision.

        Returns:
            The sum, 0-d, in float32 at least.
        """
        wanted = [how.differentiates and needed for needed in ctx.needs_input_grad[:3]]
        gradients = Gradients.of((hidden, weight, bias), wanted)
        layer = weight.to(how.dtype)
        total = hidden.new_zeros((), dtype=_precise(hidden.dtype))
        for start in range(0, len(hidden), how.rows):
            rows = slice(start, start + how.rows)
            chunk = hidden[rows].to(how.dtype)
            losses, slopes = _loss_and_slopes(chunk, layer, bias, targets[rows], how.softcap, any(wanted))
            total += losses
            if slopes is not None:
                gradients.add(rows, slopes, chunk, layer)
        ctx.gradients = gradients
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        """The gradients, times that of the sum."""
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of a chunked loss are given away by its first backward pass: they are gone"
            )
        gradients, ctx.gradients = ctx.gradients, None
        found = zip(gradients.each, ctx.dtypes, strict=True)
        return (*(None if one is None else one.mul_(scale).to(dtype) for one, dtype in found), None, None)


@dataclass
class Gradients:
    """Those of hidden states, weights and bias, in float32 at least; None where they are not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, tensors: tuple[Tensor | None, ...], wanted: list[bool]) -> Gradients:
        """Zeros, for those that are wanted."""
        pairs = zip(tensors, wanted, strict=True)
        return cls(*(_zeros(one) if one is not None and needed else None for one, needed in pairs))

    @property
    def each(self) -> tuple[Tensor | None, ...]:
        """In the order of the loss's arguments."""
        return self.hidden, self.weight, self.bias

    def add(self, rows: slice, slopes: Tensor, chunk: Tensor, layer: Tensor) -> None:
        """Take in a chunk, by the gradients in its logits."""
        if self.bias is not None:
            self.bias += slopes.sum(0)
        slopes = slopes.to(layer.dtype)
        if self.hidden is not None:
            self.hidden[rows] = slopes @ layer
        if self.weight is not None:
            _add_product(self.weight, slopes, chunk)


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, dtype=_precise(tensor.dtype))


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right. In half precision a product is made of a block at a time, as it is a tensor of its own."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
        return
    for start in range(0, len(total), _BLOCK):
        block = slice(start, start + _BLOCK)
        total[block] += left[:, block].T @ right


def _loss_and_slopes(
    chunk: Tensor, layer: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None, differentiates: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum of a chunk's losses, and its gradient in the logits as the layer gives them."""
    logits = (chunk @ layer.T).to(_precise(layer.dtype))
    if bias is not None:
        logits += bias
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    ignored = (targets == IGNORE_INDEX)[:, None]
    places = targets.masked_fill(targets == IGNORE_INDEX, 0)[:, None]
    log_sums = logits.logsumexp(-1, keepdim=True)
    losses = (log_sums - logits.gather(1, places)).masked_fill_(ignored, 0).sum()
    if not differentiates:
        return losses, None
    steepness = None if softcap is None else 1 - (logits / softcap).square_()
    slopes = logits.sub_(log_sums).exp_()
    slopes.scatter_add_(1, places, torch.full_like(log_sums, -1))
    slopes.masked_fill_(ignored, 0)
    return losses, slopes if steepness is None else slopes.mul_(steepness)
