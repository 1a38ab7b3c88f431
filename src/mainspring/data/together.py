"""Loaders of several processes that take every batch together: one reads for all, or each reads shards of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from mainspring.data.samplers import DealtBatches
from mainspring.data.shared import SharedLoader

Begin = Callable[[SharedLoader], Iterator[Any]]
"""Makes the iterator of a loader, from wherever it is to begin."""


class AllShares(DealtBatches):
    """The batches of every process, round by round, for the process that reads them all."""

    def __iter__(self) -> Iterator[list[int]]:
        skipped, self._skipped = self._skipped, 0
        yield from islice(chain.from_iterable(self.rounds()), skipped, None)

    def __len__(self) -> int:
        return sum(self.length_of(rank) for rank in range(self.world_size))


class _Parcel(NamedTuple):
    """What the first process sends to each one in a round: its batch, if there is one, and whether rounds may follow."""

    batches: list[Any]
    more: bool
    error: str | None = None


class DispatchedLoader(SharedLoader):
    """A loader of which the first process reads all batches, and sends each of the others its own.

    Its attributes are those of the loader that this process would have without it. Each batch is collated by itself, so
    that batches of one round may differ in shape. Nothing is read before it is asked for.

    Args:
        dataset: As of ``DataLoader``.
        source: Gives the batches of all processes in the order of the ranks, round by round.
        rank: This process, from 0.
        world_size: Number of processes; all of them take their batches in step.
        arguments: Those of ``DataLoader``.
    """

    def __init__(self, dataset: Any, source: SharedLoader, rank: int, world_size: int, **arguments: Any) -> None:
        super().__init__(dataset, **arguments)
        self.source = source
        self.rank = rank
        self.world_size = world_size
        self._group: Any = None

    def __iter__(self) -> Any:
        return self.deal(iter)

    def deal(self, begin: Begin) -> Iterator[Any]:
        """The batches of this process, where the first one begins to read with ``begin``."""
        if self.rank == 0:
            batches = begin(self.source)
        else:
            batches = iter(())
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)  # as the first process's iterator does
        return self.placed(self._received(batches))

    def _received(self, batches: Iterator[Any]) -> Iterator[Any]:
        more = True
        while more:
            parcel = self._exchange(self._round(batches) if self.rank == 0 else None)
            if parcel.error is not None:
                raise RuntimeError(f"the first process, which reads for all, failed: {parcel.error}")
            yield from map(pin_memory, parcel.batches) if self.pin_memory else parcel.batches
            more = parcel.more

    def _round(self, batches: Iterator[Any]) -> list[_Parcel]:
        try:
            dealt = list(islice(batches, self.world_size))
        except Exception as error:
            # The others wait for their batches: they are to hear of it before this process ends.
            self._exchange([_Parcel([], more=False)] + (self.world_size - 1) * [_Parcel([], False, repr(error))])
            raise
        more = len(dealt) == self.world_size
        return [_Parcel(dealt[rank : rank + 1], more) for rank in range(self.world_size)]

    def _exchange(self, parcels: list[_Parcel] | None) -> _Parcel:
        self._group = _group() if self._group is None else self._group
        box: list[Any] = [None]
        dist.scatter_object_list(box, parcels, src=0, group=self._group)
        parcel: _Parcel = box[0]
        return parcel


class InStepLoader(SharedLoader):
    """A loader whose processes read shards of their own, and end an epoch together although these differ in size.

    With ``drop_last`` the epoch ends with the first process that has no full batch left. Else it ends with the last one,
    and those that are through take their first batch again.

    Args:
        source: The loader of this process's own shards; its attributes are this one's.
        rank: This process, from 0.
        world_size: Number of processes; all of them take their batches in step.
        arguments: Those with which ``source`` was made.
    """

    def __init__(self, source: DataLoader[Any], rank: int, world_size: int, **arguments: Any) -> None:
        super().__init__(source.dataset, **arguments)
        self.source = source
        self.rank = rank
        self.world_size = world_size
        self._group: Any = None

    def set_epoch(self, epoch: int) -> None:
        """Tell it to the loader inside."""
        set_epoch = getattr(self.source, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def __iter__(self) -> Any:
        return self.placed(self._in_step(iter(self.source)))

    def _in_step(self, batches: Iterator[Any]) -> Iterator[Any]:
        first: list[Any] = []
        while True:
            own = list(islice(batches, 1))
            there = self._who_has_one(bool(own))
            if not any(there) or (self.drop_last and not all(there)):
                return
            if not first and not all(there):
                empty = [rank for rank, has_one in enumerate(there) if not has_one]
                raise ValueError(
                    f"the shards of process {', '.join(map(str, empty))} are empty: use other shards, or leave out "
                    "dispatch_batches=False, so that every process reads the whole stream"
                )
            first = first or copy.deepcopy(own)  # what is handed out may be changed
            yield (own or copy.deepcopy(first))[0]

    def _who_has_one(self, has_one: bool) -> list[bool]:
        self._group = _group() if self._group is None else self._group
        every = [torch.zeros(1, dtype=torch.int32) for _ in range(self.world_size)]
        dist.all_gather(every, torch.tensor([has_one], dtype=torch.int32), group=self._group)
        return [bool(flag.item()) for flag in every]


def _group() -> Any:
    """A group of its own: its exchanges have no order with the gradients', and need no GPU."""
    return dist.new_group(backend="gloo")
