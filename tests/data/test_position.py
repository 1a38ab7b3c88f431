"""Entering an epoch at any batch, and what is read for it."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard, prepare_data_loader
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, IterableDataset

from mainspring.data.lengths import Lengths
from mainspring.data.loaders import LoaderOptions, build_loader
from mainspring.data.orders import BudgetBatches, Specification
from mainspring.data.position import batches_from
from mainspring.data.samplers import EpochRandomSampler
from mainspring.data.steady import GlobalOrder


@pytest.fixture(autouse=True)
def _own_accelerate_state() -> Iterator[None]:
    """accelerate keeps its state per process: other tests must not find what these leave."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Counting:
    """Map-style data that counts its reads, also those of worker processes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reads = multiprocessing.Value("i", 0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        with self.reads.get_lock():
            self.reads.value += 1
        return index


class Stream(IterableDataset):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return (100 * self.epoch + number for number in range(10))


def build(dataset: object, workers: int = 0, persistent: bool = False, **changes: object) -> DataLoader:
    sampler = None if isinstance(dataset, IterableDataset) else EpochRandomSampler(len(dataset), 1)
    arguments: dict = {"batch_size": 2, "drop_last": False, "rank": 0, "world_size": 1, "sampler": sampler}
    options = LoaderOptions(num_workers=workers, persistent_workers=persistent)
    return build_loader(dataset, collate_fn=torch.tensor, options=options, **(arguments | changes))


def values(batches: Iterator[torch.Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_map_style_data_is_entered_without_reading_what_is_skipped(workers: int, world_size: int) -> None:
    data = Counting(40)
    loader = build(data, workers, world_size=world_size)
    whole = values(batches_from(loader, epoch=3))
    data.reads.value = 0
    rest = values(batches_from(loader, epoch=3, skip=6))
    assert rest == whole[6:]
    assert data.reads.value == sum(map(len, rest))


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_are_read_up_to_the_place(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    loader = build(Stream(), min(workers, 1))
    whole = values(batches_from(loader, epoch=2))
    assert whole[0] == [200, 201]
    with caplog.at_level(logging.INFO, logger="mainspring.data.position"):
        assert values(batches_from(loader, epoch=2, skip=3)) == whole[3:]
    assert "read past 3 batches" in caplog.text


def test_epochs_and_places_with_persistent_workers() -> None:
    data = Counting(12)
    loader = build(data, workers=1, persistent=True)
    first, second = values(batches_from(loader, 0)), values(batches_from(loader, 1))
    assert first != second
    assert values(batches_from(loader, 0, skip=2)) == first[2:]
    assert values(batches_from(loader, 1)) == second


def test_the_iterator_exists_but_nothing_is_taken() -> None:
    data = Counting(8)
    loader = build(data)
    for skip in (0, 2):
        torch.manual_seed(0)
        torch.empty((), dtype=torch.int64).random_()
        one_draw_later = torch.get_rng_state()
        torch.manual_seed(0)
        batches = batches_from(loader, 0, skip)
        assert torch.equal(torch.get_rng_state(), one_draw_later)
        assert data.reads.value == 0
        next(batches)
        assert torch.equal(torch.get_rng_state(), one_draw_later)
        data.reads.value = 0


def test_a_place_that_nobody_went_to_is_forgotten() -> None:
    loader = build(Counting(8))
    batches_from(loader, 0, skip=3)
    assert len(values(batches_from(loader, 1))) == 4


def test_a_plain_torch_loader_is_entered_without_reading() -> None:
    Accelerator()
    data = Counting(10)
    loader = DataLoader(data, batch_size=2, sampler=EpochRandomSampler(10, 4))
    whole = values(batches_from(loader, 5))
    assert [value for batch in whole for value in batch] == list(_order(10, 4, epoch=5))
    data.reads.value = 0
    assert values(batches_from(loader, 5, skip=3)) == whole[3:]
    assert data.reads.value == 4


def test_accelerates_shard_is_entered_without_reading() -> None:
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    data = Counting(10)
    loader = accelerator.prepare(DataLoader(data, batch_size=2, shuffle=True))
    assert isinstance(loader, DataLoaderShard)
    whole = values(batches_from(loader, 2))
    data.reads.value = 0
    assert values(batches_from(loader, 2, skip=2)) == whole[2:]
    assert data.reads.value == 6
    assert values(batches_from(loader, 3)) != whole


def test_our_loader_prepared_by_accelerate() -> None:
    data = Counting(10)
    loader = Accelerator().prepare(build(data))
    whole = values(batches_from(loader, 1))
    data.reads.value = 0
    assert values(batches_from(loader, 1, skip=4)) == whole[4:]
    assert data.reads.value == 2


@pytest.mark.parametrize("dispatch", [True, False])
def test_accelerates_loaders_of_streams_and_its_dispatcher_are_read(dispatch: bool) -> None:
    Accelerator()
    for data in (Stream(), list(range(10))):
        loader = prepare_data_loader(DataLoader(data, batch_size=2), dispatch_batches=dispatch, put_on_device=True)
        assert isinstance(loader, DataLoaderDispatcher) is dispatch
        whole = values(batches_from(loader, 1))
        assert len(whole) == 5
        assert values(batches_from(loader, 1, skip=3)) == whole[3:]


def test_any_iterable_is_read_and_told_the_epoch() -> None:
    class Own:
        epoch = None

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            return iter([self.epoch, 1, 2, 3])

    assert list(batches_from(Own(), 7)) == [7, 1, 2, 3]
    assert list(batches_from(Own(), 7, skip=2)) == [2, 3]
    assert list(batches_from([1, 2, 3], 0, skip=1)) == [2, 3]


def test_a_subclass_of_the_loader_keeps_its_own_iteration() -> None:
    class Doubling(DataLoader):
        def __iter__(self) -> Iterator[torch.Tensor]:
            for batch in super().__iter__():
                yield from (batch, batch)

    loader = Doubling(list(range(4)), batch_size=2)
    assert values(batches_from(loader, 0, skip=1)) == [[0, 1], [2, 3], [2, 3]]


def test_epoch_reaches_the_dataset() -> None:
    stream = Stream()
    batches_from(build(stream, world_size=2), 9)
    assert stream.epoch == 9


class Growing:
    """Samples that are longer in each epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": [index] * (2 + 3 * self.epoch)}


def test_every_process_knows_how_many_batches_the_first_one_reads() -> None:
    data = Growing()
    known = Specification("token_budget", world_size=2, max_tokens=12)
    loaders = [
        build(data, sampler=BudgetBatches(Lengths(data), known, 0), rank=rank, world_size=2, reader="first")
        for rank in (0, 1)
    ]
    counts = []
    for epoch in (0, 1, 2, 1):
        for loader in loaders:
            batches_from(loader, epoch)
        counts.append([len(loader) for loader in loaders])
    assert counts == [[2, 2], [6, 6], [12, 12], [6, 6]]


def test_the_first_process_alone_draws_the_order_of_what_it_reads() -> None:
    drawn = []
    for rank in (0, 1):
        data = Counting(8)
        loader = build(data, sampler=GlobalOrder(data), rank=rank, world_size=2, reader="first")
        torch.manual_seed(3)
        batches_from(loader, 1)
        after = torch.get_rng_state()
        torch.manual_seed(3)
        states = []
        for _ in range(2):
            torch.empty((), dtype=torch.int64).random_()
            states.append(torch.get_rng_state())
        drawn.append([torch.equal(after, state) for state in states])
    assert drawn == [[False, True], [True, False]]  # a loader's iterator draws one number by itself


def test_an_epoch_that_is_too_short_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert list(batches_from([1, 2], 0, skip=5)) == []
    assert "only 2" in caplog.text


def _order(count: int, seed: int, epoch: int) -> EpochRandomSampler:
    sampler = EpochRandomSampler(count, seed)
    sampler.set_epoch(epoch)
    return sampler
