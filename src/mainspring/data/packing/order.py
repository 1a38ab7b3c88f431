"""Which samples share a row.

Best fit, from long to short (Johnson 1973): each sample goes to the fullest row that has room for it. Which places there
are follows from the lengths alone, and so does the number of rows; which of the samples of one length takes which place,
and in which order the rows come, is drawn from (seed, epoch).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mainspring.data.lengths import LengthArray, Lengths
from mainspring.data.orders import LengthOrder, Specification
from mainspring.errors import OptionError, Problem

Row = np.ndarray[Any, Any]
_Key = tuple[int, int | None]
"""Epoch, and the tokens of a row."""


def best_fit(lengths: Iterable[int], capacity: int) -> list[int]:
    """Give each sample, in the order in which they come, the fullest row that has room for it.

    Args:
        lengths: Each at least 1 and at most `capacity`.
        capacity: What a row holds.

    Returns:
        The number of each sample's row; rows are numbered in the order in which they are begun.
    """
    rows_with_room: dict[int, list[int]] = defaultdict(list)
    rooms = 0  # bit r is set where some row has room for r more: the lowest bit from `length` on is the best fit
    begun = 0
    chosen = []
    for length in lengths:
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            row, room = begun, capacity
            begun += 1
        chosen.append(row)
        if left := room - length:
            rows_with_room[left].append(row)
            rooms |= 1 << left
    return chosen


class PackedOrder(LengthOrder, Sampler[tuple[int, ...]]):
    """The rows of an epoch: each a tuple of the indices of its samples.

    There are as many of them in every epoch, unless lengths vary by epoch.

    Args:
        lengths: Of the samples.
        pack_length: Tokens of a row at most; by default those of the longest sample.
        seed: Seed of epoch 0.

    Attributes:
        pack_length: The same.

    Raises:
        ValueError: If there are no samples.
        OptionError: If a sample is longer than a row.
    """

    def __init__(self, lengths: Lengths, pack_length: int | None, seed: int) -> None:
        super().__init__(lengths, Specification("pack_sequences", pack_length=pack_length), seed)
        self.pack_length = pack_length
        self._planned: tuple[_Key, _Places] | None = None
        self._drawn: tuple[_Key, list[Row]] | None = None
        self._places(0)

    @property
    def fill(self) -> float:
        """The share of the rows' room that holds tokens, in the epoch that was set last."""
        places = self._places(self.epoch)
        return float(np.maximum(self.lengths.of(self.epoch), 1).sum() / (len(places.ends) * places.capacity))

    def batches_of(self, epoch: int) -> list[Row]:
        """The rows of `epoch`, each an array of samples."""
        key = epoch, self._in(epoch).pack_length
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = key, self._draw(epoch)
        return self._drawn[1]

    def __len__(self) -> int:
        return len(self._places(self.epoch).ends)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        epoch = self.epoch
        for row in self.batches_of(epoch):
            yield tuple(row.tolist())
        self.epoch = epoch + 1

    def _draw(self, epoch: int) -> list[Row]:
        generator, lengths, places = self._generator(epoch), self.lengths.of(epoch), self._places(epoch)
        shuffled = torch.randperm(len(lengths), generator=generator).numpy()
        from_long_to_short = shuffled[np.argsort(-np.maximum(lengths[shuffled], 1), kind="stable")]
        rows = np.split(from_long_to_short[places.ranks], places.ends[:-1])
        return [rows[number] for number in torch.randperm(len(rows), generator=generator).tolist()]

    def _places(self, epoch: int) -> _Places:
        key = epoch if self.lengths.vary else 0, self._in(epoch).pack_length
        if self._planned is None or self._planned[0] != key:
            self._planned = key, _planned(self.lengths.of(epoch), key[1])
        return self._planned[1]


class _Places(NamedTuple):
    """Where samples go.

    Attributes:
        ranks: Row after row, which of the samples goes there, counted from long to short.
        ends: Where each row ends among them.
        capacity: Tokens of a row at most.
    """

    ranks: Row
    ends: Row
    capacity: int


def _planned(lengths: LengthArray, pack_length: int | None) -> _Places:
    if not len(lengths):
        raise ValueError("there are no samples to pack")
    lengths = np.maximum(lengths, 1)  # one without tokens takes a place all the same
    longest = int(lengths.argmax())
    capacity = int(lengths[longest]) if pack_length is None else pack_length
    if lengths[longest] > capacity:
        raise OptionError([_too_long(capacity, longest, int(lengths[longest]))])
    rows = np.asarray(best_fit((-np.sort(-lengths)).tolist(), capacity))
    return _Places(np.argsort(rows, kind="stable"), np.cumsum(np.bincount(rows)), capacity)


def _too_long(pack_length: int, index: int, length: int) -> Problem:
    return Problem(
        "pack_length",
        pack_length,
        f"sample {index} has {length} tokens, and samples are not cut",
        "raise it, leave it out (it is then the longest sample's length), or cut the samples when they are tokenized",
    )


class PackedSamples(Dataset[list[Any]]):
    """Map-style data by the row: the item at a tuple of indices is the list of these samples.

    Args:
        dataset: The samples.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch to the samples."""
        set_epoch = getattr(self.dataset, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: tuple[int, ...]) -> list[Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[tuple[int, ...]]) -> list[list[Any]]:
        """The samples of several rows, read at once where the data can do so."""
        indices = [index for row in rows for index in row]
        at_once = getattr(self.dataset, "__getitems__", None)
        samples = iter(at_once(indices) if at_once else [self.dataset[index] for index in indices])
        return [[next(samples) for _ in row] for row in rows]
