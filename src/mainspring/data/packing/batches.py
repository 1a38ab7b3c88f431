"""The collator of packed rows, and what a loader needs beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mainspring.data.packing.columns import ColumnCollator
from mainspring.data.packing.layouts import Layout
from mainspring.data.packing.order import PackedOrder, PackedSamples


class PackedBatch(dict[str, Any]):
    """A batch of packed rows.

    Attributes:
        tokens: Tokens in it: its mask, of two dimensions for each row, does not say. None where what came between has
            made another batch of it.
    """

    tokens: int | None = None


class PackingCollator:
    """Make a batch of packed rows.

    Args:
        collate: Reads the samples of all rows.
        layout: Lays them out as the model's attention takes them.
    """

    def __init__(self, collate: ColumnCollator, layout: Layout) -> None:
        self.collate = collate
        self.layout = layout

    def __call__(self, rows: list[list[Any]]) -> PackedBatch:
        """Make a batch of rows, each a list of samples."""
        columns = self.collate([sample for row in rows for sample in row])
        batch = PackedBatch(self.layout(columns, [len(row) for row in rows]))
        batch.tokens = sum(columns.lengths)
        return batch


@dataclass(frozen=True)
class Packing:
    """How a data set is packed for a model.

    Attributes:
        order: Which samples share a row, and in which order the rows come.
        layout: How a batch of rows is laid out.
    """

    order: PackedOrder
    layout: Layout

    def samples(self, dataset: Any) -> PackedSamples:
        """The data by the row."""
        return PackedSamples(dataset)

    def collator(self, collate: ColumnCollator) -> PackingCollator:
        """What makes a batch of rows."""
        return PackingCollator(collate, self.layout)
