"""The seeds of the data's random numbers, and the context they are drawn in."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
import torch

from mainspring.data.random_stream import Apart, DataStream, mixed
from tests.helpers.draws import draw


def test_the_mix_is_splitmix64() -> None:
    """The first number of the published generator started with 0."""
    assert mixed(0) == 0xE220A8397B1DCDAF


def test_neighbours_have_nothing_in_common() -> None:
    places = list(product((0, 1, 42), range(8), range(40)))
    seeds = {place: DataStream(place[0]).batch(*place[1:]) for place in places}
    assert len({seed & 0xFFFFFFFF for seed in seeds.values()}) == len(places)
    assert len({seed >> 32 for seed in seeds.values()}) == len(places)
    flips = [
        (seeds[seed, epoch, place] ^ seeds[seed, epoch, place + 1]).bit_count()
        for seed, epoch, place in places
        if place < 39
    ]
    assert 31 < sum(flips) / len(flips) < 33
    assert min(flips) > 8


def test_processes_have_batches_of_their_own_and_read_alike() -> None:
    left, right = DataStream(7, 0, 2), DataStream(7, 1, 2)
    seeds = [stream.batch(0, position) for stream in (left, right) for position in range(50)]
    assert len(set(seeds)) == 100
    assert sorted(seeds) == sorted(DataStream(7).batch(0, number) for number in range(100))
    assert left.reading(3, 5) == right.reading(3, 5) not in seeds
    assert left.worker(0, 1) != right.worker(0, 1)
    assert len({left.batch(1, 4), left.reading(1, 4), left.worker(1, 4)}) == 3


def test_torchs_generator_is_put_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(4), torch.randn(3)
    torch.manual_seed(1)
    first = torch.rand(4)
    with Apart(5):
        torch.randn(7)
    with pytest.raises(KeyError), Apart(6):
        raise KeyError(draw())
    assert torch.equal(first, expected[0])
    assert torch.equal(torch.randn(3), expected[1])
    assert torch.initial_seed() == 1


def test_numbers_are_a_function_of_the_seed() -> None:
    numbers = []
    for seed in (mixed(1), mixed(2), mixed(1)):
        with Apart(seed):
            numbers.append(draw())
        draw()
    assert numbers[0] == numbers[2]
    assert len({*numbers[0], *numbers[1]}) == 6


@pytest.mark.parametrize(
    "draws",
    [lambda: torch.rand(()), lambda: np.random.random_sample(), random.random, lambda: random.shuffle([1, 2, 3])],
    ids=["torch", "numpy", "python", "shuffle"],
)
def test_a_draw_is_noticed(draws: object) -> None:
    with Apart(9) as numbers:
        assert not numbers.has_drawn()
    with Apart(9) as numbers:
        draws()
        assert numbers.has_drawn()
