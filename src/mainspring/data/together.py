"""A loader of several processes that take every batch together: one reads for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import distributed as dist
from torch.utils.data._utils.pin_memory import pin_memory

from mainspring.data.samplers import DealtBatches
from mainspring.data.shared import SharedLoader
from mainspring.processes import side_channel

Begin = Callable[[SharedLoader], Iterator[Any]]
"""Makes the iterator of a loader, from wherever it is to begin."""

Channel = Callable[[], Any]
"""Gives the process group, on the host, of those that share the data."""


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

    Attributes:
        channel: Asked once for what the batches are sent through.
    """

    def __init__(self, dataset: Any, source: SharedLoader, rank: int, world_size: int, **arguments: Any) -> None:
        super().__init__(dataset, **arguments)
        self.source = source
        self.rank = rank
        self.world_size = world_size
        self.channel: Channel = side_channel
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
        self._group = self.channel() if self._group is None else self._group
        box: list[Any] = [None]
        dist.scatter_object_list(box, parcels, src=dist.get_global_rank(self._group, 0), group=self._group)
        parcel: _Parcel = box[0]
        return parcel
