"""Data and collators that draw random numbers, importable by worker processes."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info


def draw() -> list[float]:
    """One number of each global generator."""
    return [float(torch.rand(())), float(np.random.random_sample()), random.random()]


def collate(rows: list[Any]) -> tuple[list[Any], list[float]]:
    """The rows and numbers of the collator's own."""
    return rows, draw()


class Drawing:
    """Map-style data whose samples carry random numbers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.epoch = 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[int, int, list[float]]:
        return self.epoch, index, draw()


class Counted(Drawing):
    """The same; counts its reads, also those in forked workers."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.reads = multiprocessing.Value("i", 0)

    def __getitem__(self, index: int) -> tuple[int, int, list[float]]:
        with self.reads.get_lock():
            self.reads.value += 1
        return super().__getitem__(index)


class AtOnce(Drawing):
    """The same, read by the batch."""

    def __getitem__(self, index: int) -> tuple[int, int, list[float]]:
        raise AssertionError("a batch is read at once")

    def __getitems__(self, indices: list[int]) -> list[tuple[int, int, list[float]]]:
        shared = draw()
        return [(self.epoch, index, shared) for index in indices]


class DrawingStream(IterableDataset):
    """A stream whose samples carry random numbers; workers share it out."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int, list[float]]]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for index in range(first, self.count, step):
            yield self.epoch, index, draw()


class Shuffling(IterableDataset):
    """A stream in an order of its own, drawn when it begins."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.count).tolist())


class Cursor(IterableDataset):
    """A stream that knows where it stands, in the way of torchdata."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.next = 0
        self.reads = 0

    def state_dict(self) -> dict[str, Any]:
        return {"next": torch.tensor(self.next)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = int(state["next"])

    def __iter__(self) -> Iterator[tuple[int, list[float]]]:
        while self.next < self.count:
            self.next += 1
            self.reads += 1
            yield self.next - 1, draw()
        self.next = 0


class Generating(IterableDataset):
    """A stream with a generator of its own, which is part of where it stands."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.next = 0
        self.generator = torch.Generator()

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]
        self.generator.set_state(state["generator"])

    def __iter__(self) -> Iterator[float]:
        for index in range(self.next, self.count):
            self.next = index + 1
            yield float(torch.rand((), generator=self.generator))
        self.next = 0


class Start:
    """Notes in each worker what it is started with, and hands it to the samples through the dataset's attribute."""

    def __call__(self, worker: int) -> None:
        info = get_worker_info()
        assert info is not None
        info.dataset.epoch = (worker, info.seed, torch.initial_seed(), draw())
