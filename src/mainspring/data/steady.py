"""Orders that are drawn from the global generators, when an epoch begins or as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, Sampler, SequentialSampler

from mainspring.data.random_stream import DataStream, mixed, seed_generators
from mainspring.data.samplers import refuse_lists, yields_batches
from mainspring.seeding import capture_host_rng, restore_host_rng


class GlobalOrder(Sampler[int]):
    """A random order drawn from torch's global generator: it depends on all that was drawn there before.

    Args:
        data_source: The dataset.
        agree: Makes one number of those of all processes; each of them calls it once an epoch.
    """

    draws_globally = True

    def __init__(self, data_source: Sized, agree: Callable[[int], int] = int) -> None:
        self.data_source = data_source
        self.agree = agree
        self._epoch: int | None = None
        self._seed: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of ``epoch`` now, unless that was done and nobody has run through it yet."""
        if self._seed is None or self._epoch != epoch:
            self._epoch, self._seed = epoch, self._drawn()

    def forget(self) -> None:
        """Draw the next order anew, also that of an epoch for which one was drawn."""
        self._seed = None

    def _drawn(self) -> int:
        return self.agree(int(torch.empty((), dtype=torch.int64).random_().item()))

    def __iter__(self) -> Iterator[int]:
        seed, self._seed = self._seed, None
        generator = torch.Generator(device="cpu").manual_seed(self._drawn() if seed is None else seed)
        yield from torch.randperm(len(self.data_source), generator=generator, device="cpu").tolist()

    def __len__(self) -> int:
        return len(self.data_source)


class SteadyBatches(BatchSampler):
    """The batches of a sampler that draws from the global generators, made a function of (seed, epoch).

    The sampler runs with random states of its own, the same on every process, and leaves the others as they are; a
    generator that it keeps for itself is seeded with its first seed and the epoch. So an epoch can be entered at any
    batch, and processes agree on what they share out.

    Args:
        sampler: Gives indices, or lists of them.
        batch_size: Samples in a batch; None where the sampler gives batches.
        drop_last: Leave out a last batch that is not full; of a sampler that gives batches, whether it does so itself.
        stream: Gives the seed of each epoch.
    """

    def __init__(self, sampler: Iterable[Any], batch_size: int | None, drop_last: bool, stream: DataStream) -> None:
        # Not super().__init__: batches of varying size have no batch_size.
        self.sampler: Any = sampler
        self.batch_size = batch_size  # type: ignore[assignment]
        self.drop_last = drop_last
        self.stream = stream
        self.epoch = 0
        generator = getattr(getattr(sampler, "sampler", sampler), "generator", None)
        self._own = (generator, generator.initial_seed()) if isinstance(generator, torch.Generator) else None

    def set_epoch(self, epoch: int) -> None:
        """Make the next run through the sampler that of ``epoch``."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        own: dict[str, Any] | None = None
        items: Iterator[Any] | None = None
        while True:
            others = capture_host_rng()
            try:
                if own is None:
                    self._seed()
                else:
                    restore_host_rng(own)
                items = iter(self.sampler) if items is None else items
                batch = self._next_batch(items)
                own = capture_host_rng()
            finally:
                restore_host_rng(others)
            if batch is None:
                return
            yield batch

    def _next_batch(self, items: Iterator[Any]) -> list[int] | None:
        """None at the end. Batches that the sampler made are taken as they are, of whatever size, and even empty."""
        if yields_batches(self.sampler):
            return next(items, None)
        batch = list(islice(items, self.batch_size))
        if batch:
            refuse_lists(self.sampler, batch)
        left_out = self.drop_last and len(batch) != self.batch_size
        return None if left_out or not batch else batch

    def _seed(self) -> None:
        seed_generators(self.stream.order(self.epoch))
        if self._own is not None:
            generator, seed = self._own
            generator.manual_seed(mixed(seed, self.epoch) >> 1)

    def __len__(self) -> int:
        count = len(cast(Sized, self.sampler))
        if yields_batches(self.sampler):
            return count
        assert self.batch_size is not None
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)


def steady(order: Iterable[Any], batch_size: int, drop_last: bool, stream: DataStream) -> Iterable[Any]:
    """An order whose draws are the data's own; one that says by ``set_epoch`` that it draws none stays as it is."""
    inside = getattr(order, "sampler", order) if yields_batches(order) else order
    if (
        isinstance(inside, (SequentialSampler, range, list))
        or hasattr(inside, "set_epoch")
        or hasattr(order, "set_epoch")
    ):
        return order
    if yields_batches(order):
        size, drops = getattr(order, "batch_size", None), bool(getattr(order, "drop_last", False))
        return SteadyBatches(order, size, drops, stream)
    return SteadyBatches(order, batch_size, drop_last, stream)
