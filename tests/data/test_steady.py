"""Orders that are drawn from the global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, WeightedRandomSampler

from mainspring.data.random_stream import DataStream
from mainspring.data.samplers import EpochRandomSampler
from mainspring.data.steady import GlobalOrder, SteadyBatches, steady

STREAM = DataStream(3, rank=0, world_size=2)


def test_an_order_of_the_global_generator_is_torchs_own() -> None:
    """The numbers of a plain `RandomSampler`, which is what the reference draws from on one process."""
    torch.manual_seed(5)
    plain = list(RandomSampler(range(20)))
    torch.manual_seed(5)
    assert list(GlobalOrder(range(20))) == plain
    assert len(GlobalOrder(range(20))) == 20


def test_an_epochs_order_is_drawn_once_and_before_it_is_run_through() -> None:
    torch.manual_seed(5)
    plain = list(RandomSampler(range(20)))
    torch.manual_seed(5)
    order = GlobalOrder(range(20))
    order.set_epoch(0)
    after = torch.get_rng_state()
    order.set_epoch(0)
    torch.manual_seed(99)
    assert list(order) == plain
    torch.set_rng_state(after)
    order.set_epoch(1)
    assert list(order) != plain


def test_an_order_that_is_forgotten_is_drawn_anew() -> None:
    order = GlobalOrder(range(20))
    order.set_epoch(1)
    order.forget()
    torch.manual_seed(5)
    order.set_epoch(1)
    torch.manual_seed(5)
    assert list(order) == list(GlobalOrder(range(20)))


def test_processes_agree_on_one_number() -> None:
    torch.manual_seed(1)
    first = GlobalOrder(range(20), agree=lambda number: 7)
    torch.manual_seed(2)
    second = GlobalOrder(range(20), agree=lambda number: 7)
    assert list(first) == list(second)


class OneByOne(Sampler[int]):
    """It draws each index when it is asked for, from every global generator."""

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Iterator[int]:
        for _ in range(12):
            yield (int(torch.randint(100, ())) + random.randrange(100)) % 50


def order_of(sampler: Any, epoch: int) -> list[list[int]]:
    order = steady(sampler, 5, False, STREAM)
    assert isinstance(order, SteadyBatches)
    order.set_epoch(epoch)
    found = []
    for batch in order:
        found.append(batch)
        torch.rand(len(found))  # as dropout would
        random.random()
    assert len(order) == len(found)
    return found


SAMPLERS = {
    "weighted": lambda: WeightedRandomSampler(torch.ones(12), 12),
    "one by one": OneByOne,
    "with a generator": lambda: WeightedRandomSampler(
        torch.ones(12), 12, generator=torch.Generator().manual_seed(random.randrange(1))
    ),
    "batches": lambda: BatchSampler(OneByOne(), 5, drop_last=True),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_sampler_draws_is_a_function_of_the_epoch(name: str) -> None:
    torch.manual_seed(1)
    first = order_of(SAMPLERS[name](), epoch=1)
    torch.manual_seed(2)
    random.seed(2)
    assert order_of(SAMPLERS[name](), epoch=1) == first
    assert order_of(SAMPLERS[name](), epoch=2) != first
    assert [len(batch) for batch in first] == ([5, 5] if name == "batches" else [5, 5, 2])


def test_the_generators_of_others_are_left_alone() -> None:
    order = steady(OneByOne(), 5, False, STREAM)
    before, python = torch.get_rng_state(), random.getstate()
    list(order)
    assert torch.equal(before, torch.get_rng_state())
    assert random.getstate() == python


def test_an_error_in_a_sampler_leaves_them_alone_too() -> None:
    class Broken(OneByOne):
        def __iter__(self) -> Iterator[int]:
            raise ValueError(torch.rand(()))

    before = torch.get_rng_state()
    with pytest.raises(ValueError):
        list(steady(Broken(), 5, False, STREAM))
    assert torch.equal(before, torch.get_rng_state())


def test_orders_that_draw_nothing_stay_as_they_are() -> None:
    for order in (EpochRandomSampler(9, 1), DataLoader(range(9)).sampler, [3, 1, 2], GlobalOrder(range(9))):
        assert steady(order, 4, False, STREAM) is order
    batches = BatchSampler(EpochRandomSampler(9, 1), 4, False)
    assert steady(batches, 4, False, STREAM) is batches


def test_drop_last() -> None:
    assert [len(batch) for batch in steady(OneByOne(), 5, True, STREAM)] == [5, 5]


class Uneven(BatchSampler):
    """Batches of its own making, of which one is empty."""

    sizes = (3, 1, 0, 3, 2)

    def __init__(self) -> None:
        super().__init__(WeightedRandomSampler(torch.ones(9), 9), 3, drop_last=True)

    def __iter__(self) -> Iterator[list[int]]:
        drawn = iter(self.sampler)
        yield from ([next(drawn) for _ in range(size)] for size in self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


def test_batches_of_a_sampler_are_taken_as_they_are() -> None:
    """Whatever their size: what `drop_last` leaves out, the sampler left out itself."""
    order = steady(Uneven(), 5, True, STREAM)
    assert isinstance(order, SteadyBatches)
    assert tuple(map(len, order)) == Uneven.sizes


def test_lists_from_what_is_no_batch_sampler_are_refused() -> None:
    class Lists(OneByOne):
        def __iter__(self) -> Any:
            return iter([[1, 2], [3, 4]])

    with pytest.raises(TypeError, match="yields lists of indices but is no BatchSampler"):
        list(steady(Lists(), 5, False, STREAM))
