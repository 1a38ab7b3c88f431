"""Data of which processes may have unequally much: how they go through an epoch together all the same.

In each update they say to each other, in one exchange, how many micro-batches they have. Whoever has fewer than another
takes part in what is left with a batch of which nothing counts, and the epoch ends when nobody has any.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset

from mainspring.data.samplers import DealtBatches
from mainspring.data.shared import SharedLoader
from mainspring.metrics import find_batch_size, map_tree

Exchange = Callable[[Sequence[int]], list[list[int]]]
"""Tells the others some numbers; returns those of every process, in the order of their shares of the data."""

PassOn = Callable[[Any, int], Any]
"""Gives everybody the object of one process, named by its share of the data."""

_UNKNOWN = -1


def may_end_apart(loader: object) -> bool:
    """Whether one of several processes may come to the end of its loader before another.

    Known of loaders of ours, and of those that Accelerate shares out; a loader that a script made may do anything.
    """
    if isinstance(loader, SharedLoader):
        return loader.ends_apart
    return not _accelerate_keeps_even(loader)


def reads_its_own(loader: object) -> bool:
    """Whether what each process reads is divided before, by the data or by a script, as it is for their number."""
    shared = isinstance(loader, SharedLoader) and not loader.dealt.apart
    return may_end_apart(loader) and not shared


def _accelerate_keeps_even(loader: object) -> bool:
    accelerate: Any = sys.modules.get("accelerate.data_loader")
    if accelerate is None:
        return False
    if isinstance(loader, accelerate.DataLoaderDispatcher):
        return True
    if not isinstance(loader, accelerate.DataLoaderShard):
        return False
    if isinstance(loader.dataset, IterableDataset):
        return isinstance(loader.dataset, accelerate.IterableDatasetShard)
    sharer = getattr(loader, "batch_sampler", None)
    return isinstance(sharer, accelerate.BatchSamplerShard) and bool(sharer.even_batches or sharer.drop_last)


class Agreed(NamedTuple):
    """What all processes have for an update.

    Attributes:
        items: That the loss counts; None where some process does not know.
        weight: Of the micro-batches; None likewise.
        present: The share of the processes that have any.
    """

    items: int | None
    weight: int | None
    present: float


class UnevenBatches:
    """The batches of one epoch in one process, which others may have more of.

    Args:
        batches: Its own.
        exchange: See :data:`Exchange`.
        pass_on: See :data:`PassOn`.
        samples: Samples of this epoch, over all processes, that lie before.

    Attributes:
        samples: Samples of this epoch, over all processes, up to the last update that was agreed on.
    """

    def __init__(self, batches: Iterator[Any], exchange: Exchange, pass_on: PassOn, samples: int = 0) -> None:
        self._batches = batches
        self._exchange = exchange
        self._pass_on = pass_on
        self._ended = False
        self._filling: Any = None
        self._provided = False  # whether everybody has a batch to fill up with
        self._most: int | None = None  # micro-batches of the process that has the most for this update
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        try:
            batch = next(self._batches)
        except StopIteration:
            self._ended = True
            raise
        if self._filling is None:
            self._filling = _copied(batch)  # what is handed out may be changed
        return batch

    @property
    def is_agreed(self) -> bool:
        """Whether the processes have told each other what they have for the update that is being read."""
        return self._most is not None

    def agree(self, micro_batches: list[Any], items: int | None, weight: int | None) -> Agreed:
        """Tell the others what this process has for the update, and hear what all have together.

        Args:
            micro_batches: This process's.
            items: That the loss counts in them; None where that is unknown.
            weight: What they weigh; None likewise.
        """
        own = len(micro_batches), sum(map(row_count, micro_batches)), *map(_told, (items, weight))
        said = self._exchange(own)
        having = [rank for rank, row in enumerate(said) if row[0]]
        self._most = max(row[0] for row in said)
        self.samples += sum(row[1] for row in said)
        self._provide(having, len(said))
        items, weight = (_sum([said[rank][column] for rank in having]) for column in (2, 3))
        return Agreed(items, weight, present=len(having) / len(said))

    def idle(self, micro_batches: list[Any]) -> list[Any]:
        """What this process, after its own, goes through the update with: a batch for each that another has more."""
        most, self._most = self._most, None
        assert most is not None
        return [_copied(self._filling) for _ in range(most - len(micro_batches))]

    def _provide(self, having: list[int], processes: int) -> None:
        """Whoever has no batch in the first update never has one of its own: it is given another's."""
        if self._provided or not having:
            return
        self._provided = True
        if len(having) < processes:
            given = self._pass_on(_on_host(self._filling), having[0])
            self._filling = given if self._filling is None else self._filling


def _told(count: int | None) -> int:
    return _UNKNOWN if count is None else count


def _sum(counts: list[int]) -> int | None:
    return None if _UNKNOWN in counts or not counts else sum(counts)


def row_count(batch: Any) -> int:
    """Rows of a batch: those of its first tensor; 0 where it has none."""
    return find_batch_size(batch) or 0


def _copied(batch: Any) -> Any:
    return map_tree(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, batch)


def _on_host(batch: Any) -> Any:
    return map_tree(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, batch)


def most_batches(loader: Any, exchange: Exchange) -> int:
    """Batches of the process that has the most. Where that can be known, nobody is asked."""
    order = getattr(loader, "batch_sampler", None)
    if isinstance(order, DealtBatches):
        return order.length_of(0)
    return max(row[0] for row in exchange([len(loader)])) if may_end_apart(loader) else len(loader)


def divides_itself(dataset: Iterable[Any]) -> bool:
    """Whether a stream gives each process samples of its own.

    A stream of ``datasets`` does after ``split_dataset_by_node``; any other one says so by an attribute
    ``divides_itself``.
    """
    kind = getattr(sys.modules.get("datasets"), "IterableDataset", ())
    if isinstance(dataset, kind):
        return getattr(dataset, "_distributed", None) is not None
    return bool(getattr(dataset, "divides_itself", False))
