"""Processes with unequally much, simulated in threads: what each update has, and what the others go through meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from mainspring.data.uneven import Agreed, UnevenBatches, most_batches

ALONE: Any = None
"""For what asks nobody."""


class World:
    """Processes that are threads of this one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.exchanges = 0
        self._said: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=20)

    def all_of(self, rank: int, value: Any) -> list[Any]:
        """The values of all; everybody has to ask."""
        self._said[rank] = value
        if self._barrier.wait() == 0:
            self.exchanges += 1
        found = list(self._said)
        self._barrier.wait()
        return found

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(work, range(self.size)))


def batches_of(rank: int, sizes: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    return [
        {"x": torch.full((size,), float(rank)), "place": torch.full((size,), place)} for place, size in enumerate(sizes)
    ]


def epoch(world: World, rank: int, sizes: Sequence[int], accumulation: int, tells: bool) -> dict[str, Any]:
    """An epoch of one process, read as the training loop reads it."""
    reading = UnevenBatches(
        iter(batches_of(rank, sizes)),
        lambda numbers: world.all_of(rank, list(numbers)),
        lambda value, source: world.all_of(rank, value)[source],
    )
    found: dict[str, Any] = {"own": [], "idle": [], "agreed": []}
    while True:
        own = list(islice(reading, accumulation))
        rows = sum(len(batch["x"]) for batch in own)
        found["agreed"].append(reading.agree(own, 10 * rows if tells else None, rows))
        idle = reading.idle(own)
        if not own and not idle:
            return {**found, "samples": reading.samples}
        found["own"].append([len(batch["x"]) for batch in own])
        found["idle"].append(idle)


WORLDS = st.lists(st.lists(st.integers(1, 5), max_size=7), min_size=1, max_size=4)
"""The sizes of each process's batches."""


@settings(deadline=None, max_examples=150)
@given(sizes=WORLDS, accumulation=st.integers(1, 3))
def test_all_go_through_as_many_micro_batches(sizes: list[list[int]], accumulation: int) -> None:
    """In every update; and what each learns from is what it has."""
    world = World(len(sizes))
    found = world.run(lambda rank: epoch(world, rank, sizes[rank], accumulation, tells=True))
    most = max(map(len, sizes))
    updates = -(-most // accumulation)
    for rank, one in enumerate(found):
        assert [size for own in one["own"] for size in own] == sizes[rank]
        steps = [len(own) + len(idle) for own, idle in zip(one["own"], one["idle"], strict=True)]
        assert steps == [min(accumulation, most - accumulation * number) for number in range(updates)]
        assert one["samples"] == sum(map(sum, sizes))
    assert world.exchanges in (
        updates + 1,
        updates + 2,
    )  # one each, one that says all is over, perhaps one that passes on


@settings(deadline=None, max_examples=80)
@given(sizes=WORLDS, accumulation=st.integers(1, 3))
def test_all_are_told_what_all_have(sizes: list[list[int]], accumulation: int) -> None:
    world = World(len(sizes))
    found = world.run(lambda rank: epoch(world, rank, sizes[rank], accumulation, tells=True))
    assert all(one["agreed"] == found[0]["agreed"] for one in found)
    for number, agreed in enumerate(found[0]["agreed"][:-1]):
        parts = [one["own"][number] for one in found]
        rows = sum(map(sum, parts))
        assert agreed == Agreed(10 * rows, rows, sum(map(bool, parts)) / len(parts))


@given(sizes=WORLDS.filter(lambda sizes: any(sizes) and not all(sizes)))
@settings(deadline=None, max_examples=40)
def test_who_has_nothing_is_given_anothers_first_batch(sizes: list[list[int]]) -> None:
    world = World(len(sizes))
    found = world.run(lambda rank: epoch(world, rank, sizes[rank], 1, tells=True))
    source = next(rank for rank, own in enumerate(sizes) if own)
    for rank, one in enumerate(found):
        owner = rank if sizes[rank] else source
        for batch in (batch for idle in one["idle"] for batch in idle):
            assert batch["x"].tolist() == [float(owner)] * sizes[owner][0]
            assert batch["place"].tolist() == [0] * sizes[owner][0]


def test_what_one_does_not_know_nobody_knows() -> None:
    world = World(2)
    found = world.run(lambda rank: epoch(world, rank, [2], 1, tells=rank == 0))
    assert [one["agreed"][0] for one in found] == [Agreed(None, 4, 1.0)] * 2


def test_who_has_no_data_need_not_know() -> None:
    world = World(2)
    found = world.run(lambda rank: epoch(world, rank, [2][rank:], 1, tells=rank == 0))
    assert [one["agreed"][0] for one in found] == [Agreed(20, 2, 0.5)] * 2


def test_what_is_gone_through_again_is_as_it_was_read() -> None:
    """Steps may change the batches that they are given."""
    world = World(2)

    def work(rank: int) -> list[float]:
        reading = UnevenBatches(
            iter(batches_of(rank, [1, 1, 1][: 1 + 2 * rank])),
            lambda numbers: world.all_of(rank, list(numbers)),
            lambda value, source: world.all_of(rank, value)[source],
        )
        seen = []
        for _ in range(3):
            own = list(islice(reading, 1))
            reading.agree(own, None, None)
            for batch in [*own, *reading.idle(own)]:
                seen.append(float(batch["x"]))
                batch.pop("x").fill_(99)
        return seen

    assert world.run(work) == [[0.0] * 3, [1.0] * 3]


def test_an_iterator_that_has_ended_is_not_asked_again() -> None:
    """Some begin anew."""

    class Endless:
        left = 1

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            self.left -= 1
            if self.left == -1:
                raise StopIteration
            return 1

    reading = UnevenBatches(Endless(), ALONE, ALONE)
    assert list(reading) == [1]
    assert list(reading) == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_how_long_an_epoch_is(world_size: int) -> None:
    """Known without asking of orders of ours; of others, the longest."""
    from mainspring.data.loaders import LoaderOptions, build_loader

    for rank in range(world_size):
        loader = build_loader(
            range(17),
            batch_size=2,
            collate_fn=list,
            sampler=None,
            drop_last=False,
            rank=rank,
            world_size=world_size,
            options=LoaderOptions(),
            even=False,
        )
        assert most_batches(loader, ALONE) == -(-9 // world_size)
    assert most_batches([1, 2], lambda numbers: [[numbers[0]], [5]]) == 5
