"""How packed samples are laid out, and how a model is told where each begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mainspring import model as models
from mainspring.data.packing.columns import MASK, POSITIONS, Columns
from mainspring.loss import IGNORE_INDEX

_FILL = {"labels": IGNORE_INDEX, "shift_labels": IGNORE_INDEX}


class Layout(Protocol):
    """Makes the arguments of a model of the samples of its rows."""

    def __call__(self, columns: Columns, rows: list[int]) -> dict[str, Any]:
        """Lay out a batch.

        Args:
            columns: The samples of all rows, one row after another.
            rows: How many samples each row has.
        """


@dataclass(frozen=True)
class Positions:
    """Rows padded to the longest, with positions that begin anew at each sample and at the padding.

    For models that see by these alone where a sample begins, and make of it what their attention needs: the block masks
    of flex attention, or the several masks of layers with windows.
    """

    def __call__(self, columns: Columns, rows: list[int]) -> dict[str, Any]:
        """The columns, and `position_ids`, of shape (rows, tokens)."""
        batch, _ = _grid(columns, rows)
        return batch


@dataclass(frozen=True)
class Masked:
    """The same rows, with a mask of shape (rows, 1, tokens, tokens): each token sees those before it in its sample.

    Attributes:
        additive: Dtype of a mask that is added to the scores, 0 or the lowest number; None: True and False.
    """

    additive: torch.dtype | None = None

    def __call__(self, columns: Columns, rows: list[int]) -> dict[str, Any]:
        """The columns, `position_ids` and `attention_mask`."""
        batch, samples = _grid(columns, rows)
        length = samples.shape[1]
        seen = (samples[:, :, None] == samples[:, None, :]).logical_and_(_causal(length))[:, None]
        if self.additive is not None:
            lowest = torch.finfo(self.additive).min
            seen = torch.zeros(seen.shape, dtype=self.additive).masked_fill_(~seen, lowest)
        return {**batch, MASK: seen}


@dataclass(frozen=True)
class Flattened:
    """All samples in one row, without any padding: for flash attention, which is told where each sample begins.

    Attributes:
        keywords: Whether forward takes `cu_seq_lens_q`, `max_length_q`, ...; else the positions have to tell it.
    """

    keywords: bool = True

    def __call__(self, columns: Columns, rows: list[int]) -> dict[str, Any]:
        """The columns and `position_ids`, of shape (1, tokens), and the places where samples begin."""
        batch: dict[str, Any] = {name: column[None] for name, column in columns.values.items()}
        batch[POSITIONS] = _positions(torch.tensor(columns.lengths))[None]
        if self.keywords:
            ends = functional.pad(torch.tensor([n for n in columns.lengths if n]).cumsum(0), (1, 0)).to(torch.int32)
            batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            batch |= {"max_length_q": max(columns.lengths), "max_length_k": max(columns.lengths)}
        return batch


def layout_for(model: nn.Module) -> Layout:
    """The layout that a model's attention takes."""
    attention = models.attention_implementation(model)
    if attention is not None and "flash" in attention:
        return Flattened(keywords=models.takes_any_keyword(model))
    if attention == "flex_attention" or models.has_windows(model):
        return Positions()
    if attention == "eager":
        return Masked(additive=next(model.parameters()).dtype)
    return Masked()


def _positions(lengths: Tensor) -> Tensor:
    """0, 1, 2, ... for each sample."""
    ends = lengths.cumsum(0)
    return torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - lengths, lengths)


def _grid(columns: Columns, rows: list[int]) -> tuple[dict[str, Tensor], Tensor]:
    """The columns as rows that are padded at their ends, and the number of the sample that each place belongs to.

    Padding counts as a sample of its row, so that each of its tokens sees something: itself.
    """
    lengths = torch.tensor(columns.lengths)
    row_of_sample = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
    sizes = torch.zeros(len(rows), dtype=torch.int64).index_add_(0, row_of_sample, lengths)
    longest = int(sizes.max())
    row_of_token = torch.repeat_interleave(row_of_sample, lengths)
    places = row_of_token * longest + _positions(sizes)
    batch = {
        name: torch.full((len(rows), longest), _FILL.get(name, 0), dtype=column.dtype)
        for name, column in columns.values.items()
    }
    for name, column in columns.values.items():
        batch[name].view(-1)[places] = column
    # Padding, too, begins anew after as many positions as a sample has: a model may have no more.
    batch[POSITIONS] = (torch.arange(longest) - sizes[:, None]).clamp_(min=0) % int(lengths.max())
    batch[POSITIONS].view(-1)[places] = _positions(lengths)
    samples = torch.full((len(rows), longest), -1)
    samples.view(-1)[places] = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return batch, samples


def _causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril_()
