"""Which samples share a row: every sample once, no row too long, and fuller rows than a naive order gives."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mainspring.data.lengths import Lengths
from mainspring.data.packing import PackedOrder, PackedSamples
from mainspring.data.packing.order import best_fit
from mainspring.errors import OptionError


class Sized:
    """Samples that have lengths alone."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"length": self.lengths[index]}


def packed(lengths: list[int], pack_length: int | None, seed: int) -> PackedOrder:
    return PackedOrder(Lengths(Sized(lengths), "length", quiet=True), pack_length, seed)


LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=60)
ROOM = st.integers(30, 64)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, capacity=ROOM, seed=st.integers(0, 2**31), epochs=st.integers(1, 3))
def test_every_epoch_has_each_sample_once_and_no_row_above_the_limit(
    lengths: list[int], capacity: int, seed: int, epochs: int
) -> None:
    order = packed(lengths, capacity, seed)
    for _ in range(epochs):
        rows = list(order)
        assert len(rows) == len(order)  # in every epoch, as the plan of the run needs it
        assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
        assert max(sum(lengths[index] for index in row) for row in rows) <= capacity


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, capacity=ROOM)
def test_no_two_rows_would_fit_in_one(lengths: list[int], capacity: int) -> None:
    sizes = sorted(sum(max(lengths[index], 1) for index in row) for row in packed(lengths, capacity, 0))
    assert len(sizes) == 1 or sizes[0] + sizes[1] > capacity


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60), capacity=ROOM)
def test_a_sample_goes_to_the_fullest_row_with_room(lengths: list[int], capacity: int) -> None:
    """As a search through all rows finds it."""
    rooms: list[int] = []
    for length, row in zip(lengths, best_fit(lengths, capacity), strict=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            assert rooms[row] == min(fitting)
        else:
            assert row == len(rooms)
            rooms.append(capacity)
        rooms[row] -= length


def _first_fit(lengths: list[int], capacity: int) -> int:
    rooms: list[int] = []
    for length in lengths:
        row = next((number for number, room in enumerate(rooms) if room >= length), len(rooms))
        rooms[row:] = rooms[row:] or [capacity]
        rooms[row] -= length
    return len(rooms)


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_fuller_than_first_fit_makes_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(4.0, 0.8, 600), 4, 512).astype(int).tolist()
    order = packed(lengths, 512, seed)
    assert len(order) < _first_fit(lengths, 512)
    assert order.fill > 0.98


def test_the_order_is_a_function_of_seed_epoch_and_lengths() -> None:
    lengths = [3, 9, 4, 4, 7, 7, 2, 5, 4, 7] * 3
    order = packed(lengths, 12, seed=4)
    first, second = list(order), list(order)
    assert first != second
    again = packed(lengths, 12, seed=4)
    again.set_epoch(1)
    assert list(again) == second
    assert list(packed(lengths, 12, seed=5)) == second  # as EpochRandomSampler: the seed of an epoch is their sum
    assert list(packed(lengths, 13, seed=4)) != first


def test_samples_of_one_length_change_their_companions_from_epoch_to_epoch() -> None:
    order = packed([5] * 40 + [7] * 40, 12, seed=0)
    companions = [{frozenset(row) for row in order} for _ in range(2)]
    assert len(companions[0] & companions[1]) < 5  # of 40


def test_a_row_is_as_long_as_the_longest_sample_by_default() -> None:
    order = packed([3, 11, 4, 4, 4, 7], None, 0)
    assert sorted(sum(order.lengths.of(0)[list(row)]) for row in order) == [11, 11, 11]


def test_a_sample_longer_than_a_row_is_named() -> None:
    with pytest.raises(OptionError, match=r"pack_length=10: sample 1 has 11 tokens, and samples are not cut"):
        packed([3, 11, 4], 10, 0)


class Growing(Sized):
    """Samples that are longer by one in each epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"length": self.lengths[index] + self.epoch}


def test_lengths_that_vary_are_planned_anew_for_each_epoch() -> None:
    order = PackedOrder(Lengths(Growing([4, 4, 4, 4, 4, 4]), "length", quiet=True), 12, seed=0)
    counts = []
    for epoch in range(4):
        order.set_epoch(epoch)
        rows = list(order)
        assert sorted(itertools.chain(*rows)) == list(range(6))
        assert len(rows) == len(order.batches_of(epoch))
        counts.append(len(rows))
    assert counts == [2, 3, 3, 6]


def test_an_epoch_that_was_begun_keeps_the_rows_that_it_was_begun_with() -> None:
    lengths = [3, 9, 4, 4, 7, 7, 2, 5, 4, 7] * 3
    begun, changed = packed(lengths, 12, seed=4), packed(lengths, 20, seed=4)
    assert len(changed.batches_of(1)) < len(begun.batches_of(1))
    changed.keep(1, begun.specification_of(1))
    changed.set_epoch(1)
    begun.set_epoch(1)
    assert len(changed) == len(begun)
    assert list(changed) == list(begun)
    assert list(changed) == list(
        itertools.islice(packed(lengths, 20, seed=6), len(changed))
    )  # the next one's are its own


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        packed([], None, 0)


class Letters:
    """Five samples, read one at a time."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> str:
        return "abcde"[index]

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class AtOnce(Letters):
    """The same, read by the batch alone."""

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read by the batch")

    def __getitems__(self, indices: list[int]) -> list[str]:
        return ["abcde"[index] for index in indices]


@pytest.mark.parametrize("kind", [Letters, AtOnce])
def test_samples_are_read_by_the_row(kind: type[Letters]) -> None:
    samples = PackedSamples(kind())
    assert samples[(3, 0)] == ["d", "a"]
    assert samples.__getitems__([(1,), (4, 2)]) == [["b"], ["e", "c"]]
    samples.set_epoch(7)
    assert samples.dataset.epochs == [7]
    assert len(samples) == 5
