"""The data's own random numbers, apart from the model's.

What a dataset's ``__getitem__`` and the collator draw from the global generators of torch (CPU), numpy and ``random``
is a function of the run's seed, the epoch, and the number of the batch in it over all processes. So neither the number
of workers nor the place at which an epoch is entered changes the data.

In the training process torch's generator is also the model's (dropout), so its state is put back after each batch.
The generators of numpy and ``random`` belong to the data: they are seeded and left as the batch leaves them.

A collator with a generator of its own can ask which batch it makes, and seed it by that: see :func:`batch_place`.

Out of reach are other generators that a dataset or collator keeps for itself, draws on a GPU, and threads that a
dataset reads with while the model trains.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import torch

_64_BITS = (1 << 64) - 1


def mixed(*numbers: int) -> int:
    """One 64-bit number out of several, such that neighbours have nothing in common.

    Each number is taken in by one step of SplitMix64: G. L. Steele, D. Lea, C. H. Flood, *Fast Splittable Pseudorandom
    Number Generators*, OOPSLA 2014, https://doi.org/10.1145/2660193.2660195.
    """
    state = 0
    for number in numbers:
        state = ((state ^ number) + 0x9E3779B97F4A7C15) & _64_BITS
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _64_BITS
        state ^= state >> 31
    return state


def seed_generators(seed: int) -> None:
    """Seed the global generators of torch (the CPU's only), numpy and ``random`` with a 64-bit number."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed goes through all devices: ten times slower
    np.random.seed(seed >> 32)
    random.seed(seed)


class Apart:
    """A context in which the global generators are seeded, and after which torch's is as it was before.

    Args:
        seed: A 64-bit number.
    """

    __slots__ = ("_before", "seed")

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> Apart:
        self._before = torch.default_generator.get_state()
        seed_generators(self.seed)
        return self

    def __exit__(self, *raised: object) -> None:
        torch.default_generator.set_state(self._before)

    def has_drawn(self) -> bool:
        """Whether anything was drawn since the context was entered. Asking draws, too."""
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(self.seed)
        if not torch.equal(state, torch.default_generator.get_state()):
            return True
        _NUMPY.seed(self.seed >> 32)
        _PYTHON.seed(self.seed)
        return bool(np.random.random_sample() != _NUMPY.random_sample() or random.random() != _PYTHON.random())


_NUMPY = np.random.RandomState(0)
_PYTHON = random.Random(0)

_PLACE: ContextVar[tuple[int, int] | None] = ContextVar("batch_place", default=None)


def batch_place() -> tuple[int, int] | None:
    """The epoch of the batch that is being made in this thread, and its number over all processes; None if unknown."""
    return _PLACE.get()


@contextmanager
def making(place: tuple[int, int]) -> Iterator[None]:
    """Make the batch at ``place``: that is what :func:`batch_place` says."""
    before = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(before)


_BATCH, _READ, _WORKER, _ORDER = range(4)


@dataclass(frozen=True)
class DataStream:
    """The seeds of one process's data.

    Attributes:
        seed: The same on every process.
        rank: This process, from 0.
        world_size: Number of processes.
    """

    seed: int
    rank: int = 0
    world_size: int = 1

    def batch(self, epoch: int, position: int) -> int:
        """The seed of this process's batch number ``position`` in ``epoch``; other processes have other ones."""
        return mixed(self.seed, _BATCH, *self.place(epoch, position))

    def place(self, epoch: int, position: int) -> tuple[int, int]:
        """The epoch, and the number over all processes of this process's batch number ``position``."""
        return epoch, position * self.world_size + self.rank

    def reading(self, epoch: int, position: int) -> int:
        """The seed for reading what batch number ``position`` is made of, from a stream that every process reads.

        It is the same on every process, so that their streams stay the same.
        """
        return mixed(self.seed, _READ, epoch, position)

    def worker(self, epoch: int, worker: int) -> int:
        """The seed with which a worker starts."""
        return mixed(self.seed, _WORKER, epoch, self.rank, worker)

    def order(self, epoch: int) -> int:
        """The seed of an order that a sampler draws from the global generators; the same on every process."""
        return mixed(self.seed, _ORDER, epoch)
