"""The loader of one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from mainspring.data import loaders
from mainspring.data.loaders import LoaderOptions, build_loader
from mainspring.data.samplers import EpochRandomSampler, IterableShard
from mainspring.data.shared import SharedLoader


def build(dataset: object, **changes: object) -> DataLoader:
    arguments: dict = {
        "batch_size": 4,
        "collate_fn": torch.tensor,
        "sampler": None,
        "drop_last": False,
        "rank": 0,
        "world_size": 1,
        "options": LoaderOptions(),
    }
    return build_loader(dataset, **(arguments | changes))


def values(loader: DataLoader) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def flat(loader: DataLoader) -> list[int]:
    return [value for batch in values(loader) for value in batch]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


def test_it_is_a_torch_loader_in_the_datas_own_order() -> None:
    loader = build(list(range(10)))
    assert type(loader) is SharedLoader
    assert values(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3


def test_drop_last() -> None:
    assert values(build(list(range(10)), drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert values(build(Stream(), drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_ranks_share_out_the_order_of_the_epoch() -> None:
    order = list(EpochRandomSampler(8, 3))
    for rank in range(2):
        loader = build(list(range(8)), batch_size=2, sampler=EpochRandomSampler(8, 3), rank=rank, world_size=2)
        assert values(loader) == [order[2 * rank : 2 * rank + 2], order[2 * rank + 4 : 2 * rank + 6]]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_does_not_depend_on_workers(workers: int) -> None:
    loader = build(list(range(10)), sampler=EpochRandomSampler(10, 1), options=LoaderOptions(num_workers=workers))
    assert flat(loader) == list(EpochRandomSampler(10, 1))


def test_a_batch_sampler_is_the_global_order() -> None:
    sampler = BatchSampler(range(9), 2, drop_last=False)
    assert values(build(list(range(9)), sampler=sampler, rank=1, world_size=2)) == [[2, 3], [6, 7], [1, 2]]


def test_plain_random_sampler_is_seeded() -> None:
    data = list(range(12))
    expected = list(EpochRandomSampler(12, 5))
    assert flat(build(data, sampler=RandomSampler(data), seed=5)) == expected
    torch.manual_seed(5)
    torch.rand(3)
    assert flat(build(data, sampler=RandomSampler(data))) == expected


@pytest.mark.parametrize("dataset", [list(range(10)), Stream()], ids=["map", "stream"])
def test_an_iterator_draws_once_from_the_global_generator_like_torchs_own(dataset: object) -> None:
    torch.manual_seed(0)
    list(DataLoader(dataset, batch_size=4))
    expected = torch.get_rng_state()
    sampler = None if isinstance(dataset, Stream) else EpochRandomSampler(10, 1)
    torch.manual_seed(0)
    loader = build(dataset, sampler=sampler)
    before = torch.get_rng_state()
    iterator = iter(loader)
    assert not torch.equal(before, torch.get_rng_state())
    list(iterator)
    assert torch.equal(expected, torch.get_rng_state())


def test_streams_are_sharded_by_slices() -> None:
    shares = [build(Stream(), batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert isinstance(shares[0].dataset, IterableShard)
    assert values(shares[0]) == [[0, 1], [4, 5], [8, 9]]
    assert values(shares[1]) == [[2, 3], [6, 7], [0, 1]]


def test_a_single_process_reads_the_stream_itself() -> None:
    stream = Stream()
    assert build(stream).dataset is stream


def test_a_stream_of_datasets_hands_out_whole_shards() -> None:
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_dict({"x": list(range(8))}).to_iterable_dataset(num_shards=2)
    loader = build(stream, rank=1, world_size=2, collate_fn=lambda rows: torch.tensor([row["x"] for row in rows]))
    assert values(loader) == [[4, 5, 6, 7]]
    too_few = build(stream, rank=1, world_size=3)
    assert isinstance(too_few.dataset, IterableShard)


def test_options_reach_the_loader() -> None:
    options = LoaderOptions(num_workers=1, persistent_workers=True, prefetch_factor=3, multiprocessing_context="spawn")

    def init(worker: int) -> None:
        raise AssertionError("no worker is started here")

    loader = build(list(range(3)), options=options, worker_init_fn=init)
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, True, 3)
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert loader.worker_init_fn is init


def test_pinning_only_with_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(loaders, "_pinning_helps", lambda there=there: there)
        assert build([1]).pin_memory is there
        assert build([1], options=LoaderOptions(pin_memory=False)).pin_memory is False


def test_in_order_is_left_out_where_torch_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LoaderOptions(in_order=False).as_arguments()["in_order"] is False
    monkeypatch.setattr(loaders, "_KNOWS_IN_ORDER", False)
    assert "in_order" not in LoaderOptions().as_arguments()
