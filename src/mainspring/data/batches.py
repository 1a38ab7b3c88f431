"""Data by the batch: what is read and collated for a batch, drawn under the batch's own seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from mainspring.data.random_stream import Apart, DataStream, making, seed_generators
from mainspring.data.resumable import Resumable, replays
from mainspring.data.samplers import DealtBatches

Collate = Callable[[list[Any]], Any]
Place = tuple[int, int, list[int]]
"""Epoch, number of the batch in it, indices of its samples."""


_AT_THE_END = -1
"""In place of a batch's number, where there is none left."""


class Places(Sampler[Place]):
    """The batches of a sampler, each with its epoch and number."""

    def __init__(self, batches: DealtBatches, epoch: torch.Tensor) -> None:
        self.batches = batches
        self.epoch = epoch

    def __iter__(self) -> Iterator[Place]:
        epoch = int(self.epoch)
        for number, indices in enumerate(self.batches, start=self.batches.skipped):
            yield epoch, number, indices

    def __len__(self) -> int:
        return len(self.batches)


class _Told:
    """A dataset that is told of a new epoch where it is read: copies in lasting workers would not hear of it."""

    def __init__(self, dataset: Any, epoch: int) -> None:
        self.dataset = dataset
        self._told = epoch

    def _tell(self, epoch: int) -> None:
        if epoch == self._told:
            return
        self._told = epoch
        set_epoch = getattr(self.dataset, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


class MapBatches(_Told, Dataset[Any]):
    """Map-style data: the item at a :data:`Place` is its batch."""

    def __init__(self, dataset: Any, collate_fn: Collate, stream: DataStream, epoch: int) -> None:
        super().__init__(dataset, epoch)
        self.collate_fn = collate_fn
        self.stream = stream

    def __getitem__(self, place: Place) -> Any:
        epoch, number, indices = place
        self._tell(epoch)
        with Apart(self.stream.batch(epoch, number)), making(self.stream.place(epoch, number)):
            return self.collate_fn(_rows(self.dataset, indices))


def _rows(dataset: Any, indices: list[int]) -> list[Any]:
    at_once = getattr(dataset, "__getitems__", None)
    if at_once:
        return at_once(indices)  # type: ignore[no-any-return]
    return [dataset[index] for index in indices]


class StreamBatches(_Told, IterableDataset[Any]):
    """A stream. Of several workers, each counts its batches as the loader takes them: in turns.

    Attributes:
        resumable: How its position is saved; None where it is not.
        entry: Where the next iteration begins: batches left out, the stream's state after them, and whether nothing came
            after them; None for the start.
        replay_differs: Whether a resumed run would draw other random numbers in the steps that it takes again.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Collate,
        stream: DataStream,
        epoch: torch.Tensor,
        batch_size: int,
        drop_last: bool,
    ) -> None:
        super().__init__(dataset, int(epoch))
        self.collate_fn = collate_fn
        self.stream = stream
        self.epoch = epoch
        self.batch_size = batch_size
        self.drop_last = drop_last
        # Read alike on every process but collated differently; and what is watched is not what the collator draws.
        self._collates_apart = stream.world_size > 1 or replays(dataset)
        self.resumable: Resumable | None = None
        self.entry: tuple[int, Any, bool] | None = None
        self.replay_differs = False
        self._done: tuple[int, int] | None = None  # epoch, and batches of it that were handed out
        self._ended = False  # whether the stream had nothing left: what it says then is where it begins anew

    def __iter__(self) -> Iterator[Any]:
        epoch = int(self.epoch)
        self._tell(epoch)
        self._seed_generator(epoch)
        info = get_worker_info()
        first, step = (self._enter(epoch), 1) if info is None else (info.id, info.num_workers)
        if first == _AT_THE_END:
            return
        samples: Iterator[Any] | None = None
        self._ended = False
        for number in count(first, step):
            with Apart(self.stream.reading(epoch, number)) as numbers:
                samples = iter(self.dataset) if samples is None else samples
                rows = list(islice(samples, self.batch_size))
                self._watch(numbers)
                self._ended = len(rows) < self.batch_size or getattr(self.dataset, "ended", False)
                if not rows or (self.drop_last and len(rows) < self.batch_size):
                    return
                if self._collates_apart:
                    seed_generators(self.stream.batch(epoch, number))
                with making(self.stream.place(epoch, number)):
                    batch = self.collate_fn(rows)
            self._done = epoch, number + 1
            yield batch

    def _seed_generator(self, epoch: int) -> None:
        """A stream with a generator of its own, and no `set_epoch`, has it seeded for the epoch."""
        generator = getattr(self.dataset, "generator", None)
        if isinstance(generator, torch.Generator) and not hasattr(self.dataset, "set_epoch"):
            generator.manual_seed(self.stream.seed + epoch)

    def _enter(self, epoch: int) -> int:
        """Go to the place where the iteration begins; returns the number of its first batch."""
        if self.entry is None or self.resumable is None:
            return 0
        skip, state, ended = self.entry
        if ended:
            self._done, self._ended = (epoch, skip), True
            return _AT_THE_END
        with Apart(self.stream.reading(epoch, 0)):
            self.resumable.enter(state)
        return skip

    def _watch(self, numbers: Apart) -> None:
        if self.resumable is not None and self.resumable.replays and not self.replay_differs:
            self.replay_differs = numbers.has_drawn()

    def position(self) -> dict[str, Any] | None:
        """The place after the last batch handed out; None before the first one."""
        if self.resumable is None or self._done is None:
            return None
        epoch, batches = self._done
        samples = batches * self.batch_size * self.stream.world_size
        return {**self.resumable.place(epoch, samples), "state": self.resumable.state(), "ended": self._ended}
