"""What a loader's data draws is a function of the place in the epoch, and the model's generator is not touched."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mainspring.data import drawn
from mainspring.data.drawn import DrawnLoader
from mainspring.data.loaders import LoaderOptions, build_loader
from mainspring.data.position import batches_from
from mainspring.data.random_stream import DataStream
from mainspring.data.samplers import EpochRandomSampler
from mainspring.data.shared import SharedLoader
from tests.helpers.draws import AtOnce, Counted, Drawing, DrawingStream, Shuffling, Start, collate

COUNT = 22
SEVEN = range(7)


def build(dataset: Any, rank: int = 0, world_size: int = 1, seed: int = 3, **changes: Any) -> DataLoader[Any]:
    """Batches of three, a last one of one; `changes` are options of the loader or arguments of `build_loader`."""
    options = {name: changes.pop(name) for name in list(changes) if name in LoaderOptions.__dataclass_fields__}
    map_style = hasattr(dataset, "__len__")
    arguments = {
        "batch_size": 3,
        "collate_fn": collate,
        "sampler": EpochRandomSampler(len(dataset), seed=1) if map_style else None,
        "drop_last": False,
        "options": LoaderOptions(**options),
        "stream": DataStream(seed, rank, world_size),
        **changes,
    }
    return build_loader(dataset, rank=rank, world_size=world_size, **arguments)


def read(batches: Iterator[Any]) -> list[Any]:
    """The batches; everything else is brought to another state while they are read."""
    found = []
    for batch in batches:
        found.append(batch)
        np.random.random_sample(5)
        random.random()
        torch.rand(len(found))
    return found


@pytest.fixture(scope="module")
def whole() -> list[Any]:
    return read(batches_from(build(Drawing(COUNT)), epoch=2))


def numbers_in(batches: list[Any]) -> list[float]:
    """Every number drawn for them."""
    return [number for rows, own in batches for part in [*(row[-1] for row in rows), own] for number in part]


def test_no_number_comes_twice(whole: list[Any]) -> None:
    numbers = numbers_in(whole)
    assert len(numbers) == 3 * (COUNT + 8)
    others = numbers_in(read(batches_from(build(Drawing(COUNT)), epoch=1)))
    other_seed = numbers_in(read(batches_from(build(Drawing(COUNT), seed=4), epoch=2)))
    assert len({*numbers, *others, *other_seed}) == 3 * len(numbers)


@pytest.mark.parametrize("skip", range(9))
@pytest.mark.parametrize("workers", [0, 2])
def test_the_place_of_entry_and_the_workers_change_nothing(workers: int, skip: int, whole: list[Any]) -> None:
    loader = build(Drawing(COUNT), num_workers=workers)
    assert read(batches_from(loader, epoch=2, skip=skip)) == whole[skip:]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_that_are_started_anew(context: str, whole: list[Any]) -> None:
    """Lasting ones, which hear of the epochs and places as they come."""
    loader = build(
        Drawing(COUNT), num_workers=2, persistent_workers=True, multiprocessing_context=context, worker_init_fn=Start()
    )
    read(batches_from(loader, epoch=1))
    for skip in (0, 1, 7, 4):
        assert read(batches_from(loader, epoch=2, skip=skip)) == whole[skip:]


def test_lasting_workers_follow_the_epoch(whole: list[Any]) -> None:
    loader = build(Drawing(COUNT), num_workers=2, persistent_workers=True, prefetch_factor=4)
    first = read(batches_from(loader, epoch=0))
    assert read(batches_from(loader, epoch=2)) == whole
    assert read(batches_from(loader, epoch=2, skip=5)) == whole[5:]
    assert read(batches_from(loader, epoch=0)) == first


def test_batches_that_come_out_of_order(whole: list[Any]) -> None:
    loader = build(Drawing(COUNT), num_workers=2, in_order=False)
    assert sorted(read(batches_from(loader, epoch=2))) == sorted(whole)


def test_samples_that_are_read_at_once() -> None:
    expected = read(batches_from(build(AtOnce(COUNT)), epoch=2))
    assert expected[0][0][0][-1] == expected[0][0][1][-1]
    assert read(batches_from(build(AtOnce(COUNT), num_workers=2), epoch=2, skip=3)) == expected[3:]


def test_two_processes_share_the_order_and_nothing_else() -> None:
    ranks = [read(batches_from(build(Drawing(24), rank, 2), epoch=1)) for rank in range(2)]
    alone = read(batches_from(build(Drawing(24)), epoch=1))
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == alone
    for rank in range(2):
        for skip in range(5):
            loader = build(Drawing(24), rank, 2, num_workers=skip % 2)
            assert read(batches_from(loader, epoch=1, skip=skip)) == ranks[rank][skip:]


def test_every_evaluation_draws_the_same() -> None:
    """Nobody calls set_epoch on its loader."""
    loader = build(Drawing(COUNT), sampler=None)
    first = read(iter(loader))
    assert read(iter(loader)) == first
    assert read(iter(build(Drawing(COUNT), sampler=None, num_workers=2, persistent_workers=True))) == first


def test_transforms_of_datasets() -> None:
    datasets = pytest.importorskip("datasets")

    def crop(rows: dict[str, list[int]]) -> dict[str, list[float]]:
        return {"x": [value + random.random() + float(torch.rand(())) + np.random.rand() for value in rows["x"]]}

    def values(rows: list[dict[str, float]]) -> list[float]:
        return [row["x"] for row in rows]

    data = datasets.Dataset.from_dict({"x": list(range(COUNT))}).with_transform(crop)
    expected = read(batches_from(build(data, collate_fn=values), epoch=1))
    assert len({value for batch in expected for value in batch}) == COUNT
    for workers in (0, 2):
        loader = build(data, collate_fn=values, num_workers=workers)
        assert read(batches_from(loader, epoch=1, skip=4)) == expected[4:]


def mask(rows: list[Any]) -> torch.Tensor:
    """Hides a random third, as collators of masked language models do."""
    tokens = torch.tensor([row[1] for row in rows])
    return tokens.masked_fill(torch.bernoulli(torch.full(tokens.shape, 0.3)).bool(), -1)


def test_masks_of_a_collator() -> None:
    expected = torch.cat(read(batches_from(build(Drawing(60), collate_fn=mask), epoch=0)))
    assert 5 < (expected == -1).sum() < 35
    loader = build(Drawing(60), collate_fn=mask, num_workers=2)
    assert torch.equal(torch.cat(read(batches_from(loader, epoch=0, skip=3))), expected[9:])
    assert not torch.equal(torch.cat(read(batches_from(loader, epoch=1))) == -1, expected == -1)


def one_draw_after(state: torch.Tensor) -> torch.Tensor:
    """torch's state after what a plain loader draws for an iterator."""
    torch.set_rng_state(state)
    iter(DataLoader([1]))
    return torch.get_rng_state()


@pytest.mark.parametrize("dataset", [Drawing, DrawingStream])
@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}])
def test_the_models_generator_moves_once_per_iterator(dataset: Callable[[int], Any], options: dict[str, Any]) -> None:
    loader = build(dataset(COUNT), **options)
    for epoch in range(3):
        torch.manual_seed(epoch)
        before = torch.get_rng_state()
        expected = one_draw_after(before)
        torch.set_rng_state(before)
        batches = batches_from(loader, epoch)
        assert torch.equal(torch.get_rng_state(), expected)
        for _ in batches:
            assert torch.equal(torch.get_rng_state(), expected)


def test_an_error_leaves_the_models_generator_alone() -> None:
    class Broken(Drawing):
        def __getitem__(self, index: int) -> Any:
            raise ValueError(super().__getitem__(index))

    batches = iter(build(Broken(4)))
    before = torch.get_rng_state()
    with pytest.raises(ValueError):
        next(batches)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_far_into_the_data_only_the_prefetch_is_read(workers: int) -> None:
    data = Counted(1_000_000)
    loader = build(data, num_workers=workers, batch_size=4)
    batches = batches_from(loader, epoch=0, skip=200_000)
    next(batches)
    prefetch = 2 * workers
    assert data.reads.value <= (prefetch + 1) * 4
    assert len(loader) == 250_000


def test_user_code_in_workers_meets_its_own_dataset() -> None:
    def started(**changes: Any) -> list[Any]:
        loader = build(Drawing(6), num_workers=2, worker_init_fn=Start(), **changes)
        return [rows[0][0] for rows, _ in batches_from(loader, epoch=1)]

    torch.manual_seed(1)
    first = started()
    torch.manual_seed(2)
    assert started() == first
    assert [start[0] for start in first] == [0, 1]
    assert all(seed == initial for _, seed, initial, _ in first)
    assert first[0][3] != first[1][3]
    assert started(seed=9) != first


def test_it_looks_like_a_plain_loader() -> None:
    data = Drawing(COUNT)
    loader, plain = build(data), build(data, stream=None)
    assert isinstance(loader, DrawnLoader)
    assert type(plain) is SharedLoader
    assert loader.dataset is data
    assert loader.collate_fn is collate
    assert loader.batch_sampler.sampler.seed == 1
    assert (loader.batch_size, len(loader), loader.dealt) == (plain.batch_size, len(plain), plain.dealt)
    stream = build(DrawingStream(COUNT))
    assert (stream.batch_size, stream.drop_last) == (3, False)


def test_what_users_set_on_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = build(Drawing(COUNT), num_workers=1, prefetch_factor=3, multiprocessing_context="fork", in_order=False)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(drawn, "DataLoader", lambda **arguments: seen.update(arguments) or DataLoader([0]))
    loader.timeout, loader.pin_memory = 11, True
    iter(loader)
    assert (seen["num_workers"], seen["prefetch_factor"], seen["in_order"]) == (1, 3, False)
    assert (seen["timeout"], seen["pin_memory"]) == (11, True)
    assert seen["multiprocessing_context"].get_start_method() == "fork"
    monkeypatch.undo()
    loader.timeout, loader.pin_memory, loader.num_workers = 0, False, 0
    loader.collate_fn = len
    assert list(loader) == [3] * 7 + [1]


def test_torchs_pipes_seed_themselves() -> None:
    from torch.utils.data.datapipes.iter import IterableWrapper

    assert type(build(IterableWrapper(range(4)))) is SharedLoader


# ---- streams ----


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_reading_past_a_place_in_a_stream_repeats_the_numbers(options: dict[str, Any]) -> None:
    expected = {epoch: read(batches_from(build(DrawingStream(COUNT), **options), epoch)) for epoch in (0, 2)}
    numbers = numbers_in(expected[0] + expected[2])
    assert len(set(numbers)) == len(numbers)
    assert {row[0] for rows, _ in expected[2] for row in rows} == {2}
    for skip in SEVEN:
        loader = build(DrawingStream(COUNT), **options)
        assert read(batches_from(loader, 0)) == expected[0]
        assert read(batches_from(loader, 2, skip)) == expected[2][skip:]


def test_processes_read_a_stream_alike_and_collate_it_differently() -> None:
    ranks = [read(batches_from(build(Shuffling(24), rank, 2), epoch=1)) for rank in range(2)]
    assert sorted(index for batches in ranks for rows, _ in batches for index in rows) == list(range(24))
    numbers = [number for batches in ranks for _, own in batches for number in own]
    assert len(set(numbers)) == len(numbers)
    assert ranks[0] != read(batches_from(build(Shuffling(24), 0, 2), epoch=2))


def test_the_end_of_a_stream() -> None:
    assert [len(rows) for rows, _ in build(DrawingStream(7))] == [3, 3, 1]
    assert [len(rows) for rows, _ in build(DrawingStream(7), drop_last=True)] == [3, 3]
    assert [len(rows) for rows, _ in build(DrawingStream(6))] == [3, 3]
    assert list(build(DrawingStream(0))) == []
