"""How much of what a model is fed is padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mainspring.data.packing.batches import PackedBatch


class PaddingCount:
    """Counts the positions of batches, and the tokens among them, where an attention mask or a packed batch tells.

    Adding never waits for an accelerator; only reading does.

    Attributes:
        positions: Of all batches since the last :meth:`clear`.
        tokens: Those that are no padding.
    """

    __slots__ = ("positions", "tokens")

    def __init__(self, positions: int = 0, tokens: int | Tensor = 0) -> None:
        self.positions = positions
        self.tokens = tokens

    def add(self, batch: Any) -> None:
        """Count a batch. One that tells nothing counts nothing."""
        if isinstance(batch, PackedBatch) and batch.tokens is not None:
            self.positions += batch["input_ids"].numel()
            self.tokens = self.tokens + batch.tokens
            return
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if isinstance(mask, Tensor) and mask.dim() == 2:
            self.positions += mask.numel()
            self.tokens = self.tokens + mask.count_nonzero()  # not in place: copies of the count stay what they are

    def read(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> tuple[int, int]:
        """Positions and tokens of all processes, which ask for them together."""
        positions, tokens = sum_over_ranks(torch.tensor([self.positions, int(self.tokens)])).tolist()
        return positions, tokens

    def clear(self) -> None:
        """Begin anew."""
        self.positions, self.tokens = 0, 0


def padding_fraction(positions: int, tokens: int) -> float | None:
    """The share of positions that are padding; None where nothing was counted."""
    return 1 - tokens / positions if positions else None
