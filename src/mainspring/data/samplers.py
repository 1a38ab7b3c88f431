"""Which samples, in which order, and which of them are this process's.

The order of an epoch is a function of (seed, epoch) alone, the same on every process; the processes share out its
batches like cards. None of the classes here reads the dataset, so an order can be entered at any place at no cost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from itertools import chain, cycle, islice
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler
from torch.utils.data.distributed import DistributedSampler

T = TypeVar("T")

_PIECE = 1 << 16
_REPLACEMENT_PORTION = 32


class EpochRandomSampler(RandomSampler):
    """A random order that depends on ``seed`` and the epoch only.

    The order of epoch ``e`` is what ``torch.randperm`` draws from a generator seeded with ``seed + e``; torch's global
    generator is left alone. Running through it once moves on to the next epoch; :meth:`set_epoch` goes to any.

    Args:
        data_source: The dataset, or its number of samples.
        seed: Seed of epoch 0.
        replacement: Draw with replacement.
        num_samples: Draws per epoch; the length of ``data_source`` by default.

    Raises:
        ValueError: If there are no samples.
    """

    def __init__(
        self, data_source: Sized | int, seed: int, replacement: bool = False, num_samples: int | None = None
    ) -> None:
        source = range(data_source) if isinstance(data_source, int) else data_source
        if not len(source):
            raise ValueError(f"data_source={type(data_source).__name__} has no samples: there is nothing to draw from")
        super().__init__(source, replacement, num_samples)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next run through the sampler that of ``epoch``."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        for drawn in self._drawn(torch.Generator(device="cpu").manual_seed(self.seed + epoch)):
            # Piece by piece: the Python integers of a long order take several times its tensor's memory.
            for piece in torch.split(drawn, _PIECE):
                yield from piece.tolist()
        self.epoch = epoch + 1

    def _drawn(self, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """The draws of one epoch in the portions in which torch's RandomSampler makes them."""
        population = len(self.data_source)
        portion = _REPLACEMENT_PORTION if self.replacement else population
        for start in range(0, self.num_samples, portion):
            count = min(portion, self.num_samples - start)
            if self.replacement:
                yield torch.randint(population, (count,), generator=generator, device="cpu")
            else:
                yield torch.randperm(population, generator=generator, device="cpu")[:count]


def seeded(sampler: Iterable[Any], seed: int) -> Iterable[Any]:
    """Turn torch's ``RandomSampler``, also one inside a ``BatchSampler``, into an :class:`EpochRandomSampler`.

    A plain ``RandomSampler`` draws its order from the global generator: processes would disagree about it, and a
    resumed run could not repeat it. Subclasses and all other samplers are returned as they are.
    """
    if type(sampler) is RandomSampler:
        num_samples = getattr(sampler, "_num_samples", None)  # None follows the length of the data
        return EpochRandomSampler(sampler.data_source, seed, sampler.replacement, num_samples)
    if type(sampler) is BatchSampler:
        return BatchSampler(cast("Iterable[int]", seeded(sampler.sampler, seed)), sampler.batch_size, sampler.drop_last)
    return sampler


def yields_batches(sampler: object) -> bool:
    """Whether ``sampler`` gives lists of indices, as a ``BatchSampler`` does, rather than single ones."""
    if isinstance(sampler, BatchSampler):
        return True
    looks_alike = hasattr(sampler, "batch_size") and hasattr(sampler, "drop_last")
    return looks_alike and not isinstance(sampler, DistributedSampler)


class DealtBatches(BatchSampler):
    """This process's share of one global order, dealt batch by batch.

    In every round each process gets one batch, in the order of their ranks. The last round may lack samples: with
    ``drop_last`` it is dropped; else, with ``even``, it is completed with samples from the start of the epoch, so that
    all processes do the same number of steps. A single process gets the plain batches, the last one as short as it is.

    Args:
        sampler: The global order: indices, or batches of them (then ``batch_size`` and ``drop_last`` are its own).
        batch_size: Samples in a batch of one process.
        drop_last: Leave out batches and rounds that are not full.
        rank: This process, from 0.
        world_size: Number of processes.
        even: Complete the last round.

    Raises:
        ValueError: If ``batch_size`` is not a positive integer or ``rank`` not one of ``world_size``.
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        batch_size: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        even: bool = True,
    ) -> None:
        # Not super().__init__: a batch sampler with batches of varying size has no batch_size.
        self.batched = yields_batches(sampler)
        if self.batched:
            batch_size, drop_last = getattr(sampler, "batch_size", None), bool(getattr(sampler, "drop_last", False))
        elif not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a positive integer")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be at least 0 and below world_size={world_size}")
        self.sampler: Iterable[Any] = sampler
        self.batch_size = batch_size  # type: ignore[assignment]
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.even = even
        self._skipped = 0
        self._epoch = 0
        self._entry = (0, 0)  # an epoch, and how much of its order lies before the first round

    def set_epoch(self, epoch: int) -> None:
        """Forward ``epoch`` to the sampler, and to the sampler inside a batch sampler."""
        self._epoch = epoch
        for sampler in (self.sampler, getattr(self.sampler, "sampler", None)):
            set_epoch = getattr(sampler, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(epoch)

    def skip(self, batches: int) -> None:
        """Start the next iteration, and only that one, at this process's batch number ``batches``."""
        self._skipped = batches

    def leave_out(self, epoch: int, count: int) -> None:
        """Begin ``epoch``, and only that one, after ``count`` items of its order: indices, or batches of them."""
        self._entry = epoch, count

    def left_out(self, epoch: int) -> int:
        """Items of the order of ``epoch`` before its first round."""
        return self._entry[1] if self._entry[0] == epoch else 0

    @property
    def unit(self) -> int:
        """Items of the order in a full round: indices, or batches of them."""
        if self.batched:
            return self.world_size
        return self.batch_size * self.world_size

    @property
    def skipped(self) -> int:
        """The number of the batch at which the next iteration starts."""
        return self._skipped

    def __iter__(self) -> Iterator[list[int]]:
        # A generator: torch's loader with workers makes two iterators and uses the second, so that only the first
        # batch tells which one is meant.
        skipped, self._skipped = self._skipped, 0
        if self.world_size == 1:
            yield from self._global_batches(skipped)
        else:
            yield from self._own_batches(skipped)

    def __len__(self) -> int:
        return self.length_of(self.rank)

    def length_of(self, rank: int) -> int:
        """Number of batches that process ``rank`` gets."""
        count = max(0, len(cast(Sized, self.sampler)) - self.left_out(self._epoch))
        if not self.batched:
            count = count // self.batch_size if self.drop_last else math.ceil(count / self.batch_size)
        rounds, rest = divmod(count, self.world_size)
        if not rest or self.drop_last:
            return rounds
        return rounds + 1 if self.even or rank < rest else rounds

    def _global_batches(self, start: int = 0) -> Iterator[list[int]]:
        """The batches of all processes, from number ``start`` on."""
        left_out = self.left_out(self._epoch)
        if self.batched:
            yield from islice(self.sampler, left_out + start, None)
            return
        indices = iter(self.sampler)
        deque(islice(indices, left_out + start * self.batch_size), maxlen=0)  # passed over without making batches
        while batch := list(islice(indices, self.batch_size)):
            refuse_lists(self.sampler, batch)
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def _own_batches(self, skipped: int) -> Iterator[list[int]]:
        for dealt in islice(self.rounds(), skipped, None):
            if self.rank < len(dealt):
                yield dealt[self.rank]

    def rounds(self) -> Iterator[list[list[int]]]:
        """The batches of each round in the order of the ranks; the last round may have fewer than there are."""
        first: list[list[int]] = []
        for dealt, is_last in mark_last(_chunks(self._global_batches(), self.world_size)):
            first = first or dealt
            yield self._last_round(dealt, first) if is_last and self.world_size > 1 else dealt

    def _last_round(self, dealt: list[list[int]], first: list[list[int]]) -> list[list[int]]:
        if self.drop_last:
            full = len(dealt) == self.world_size and all(len(b) == self.batch_size for b in dealt if self.batch_size)
            return dealt if full else []
        return _completed(dealt, first, self.world_size, self.batch_size) if self.even else dealt


def refuse_lists(sampler: object, batch: list[Any]) -> None:
    """Refuse a batch whose items are lists.

    Raises:
        TypeError: Naming the sampler, which was taken for one of single indices.
    """
    if isinstance(batch[0], list):
        raise TypeError(
            f"{type(sampler).__name__} yields lists of indices but is no BatchSampler: derive it from "
            "torch.utils.data.BatchSampler, or give it the attributes batch_size and drop_last"
        )


def _completed(
    dealt: list[list[int]], first: list[list[int]], world_size: int, batch_size: int | None
) -> list[list[int]]:
    """The last round with a batch for everyone, filled from the first round, again and again if that is too short."""
    missing = world_size - len(dealt)
    if batch_size is None:
        return [*dealt, *islice(cycle(first), missing)]
    spare = cycle(chain.from_iterable(first))
    return [
        [*batch, *islice(spare, max(0, batch_size - len(batch)))] for batch in [*dealt, *([] for _ in range(missing))]
    ]


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def mark_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield `(item, is_last)`, reading one item ahead."""
    iterator = iter(items)
    for current in iterator:
        for following in iterator:
            yield current, False
            current = following
        yield current, True


class IterableShard(IterableDataset[Any]):
    """This process's samples of a stream that every process reads.

    Of every ``batch_size * world_size`` samples process ``rank`` keeps its ``batch_size``. The last block may be
    short: it is dropped with ``drop_last``, completed with samples of the first block with ``even``, else left short.

    Args:
        dataset: The stream, giving the same samples on every process.
        batch_size: Samples in a batch of one process.
        drop_last: Leave out a last block that is not full.
        rank: This process, from 0.
        world_size: Number of processes.
        even: Complete the last block, so that every process gets as many batches.
        seed: A stream without ``set_epoch`` but with a ``generator`` has it seeded with ``seed`` + epoch every epoch.
    """

    def __init__(
        self,
        dataset: Iterable[Any],
        batch_size: int,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        even: bool = True,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.even = even
        self.epoch = 0
        self.ended = False  # whether what was given last is the last of the stream
        self._entered_after: list[Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch to the stream."""
        self.epoch = epoch
        set_epoch = getattr(self.dataset, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def enter(self, state: Any) -> None:
        """Start the next iteration, and only that one, at a state that the stream saved between two blocks.

        The first block is read once more where the last one may need samples of it.
        """
        self._seed()
        completes = self.even and not self.drop_last
        self._entered_after = list(islice(self.dataset, self.batch_size * self.world_size)) if completes else []
        self.dataset.load_state_dict(state)  # type: ignore[attr-defined]

    def _seed(self) -> None:
        generator = getattr(self.dataset, "generator", None)
        if isinstance(generator, torch.Generator) and not hasattr(self.dataset, "set_epoch"):
            generator.manual_seed(self.seed + self.epoch)

    def __iter__(self) -> Iterator[Any]:
        first, self._entered_after = self._entered_after, None
        if first is None:
            self._seed()
        first, self.ended = first or [], False
        block_size = self.batch_size * self.world_size
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for block in _chunks(self.dataset, block_size):
            first = first or block
            if len(block) < block_size:
                self.ended = True
                if self.drop_last:
                    return
                if self.even:
                    block = [*block, *islice(cycle(first), block_size - len(block))]
            yield from block[own]

    def __len__(self) -> int:
        blocks, rest = divmod(len(cast(Sized, self.dataset)), self.batch_size * self.world_size)
        if self.drop_last or not rest:
            return blocks * self.batch_size
        last = self.batch_size if self.even else min(max(rest - self.rank * self.batch_size, 0), self.batch_size)
        return blocks * self.batch_size + last
