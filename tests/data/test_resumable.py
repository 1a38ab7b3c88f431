"""A stream entered at a saved position goes on as if it had been read from its start; if it cannot, it is read."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from mainspring.data.loaders import LoaderOptions, build_loader
from mainspring.data.position import batches_from, capture_position
from mainspring.data.random_stream import DataStream
from tests.helpers.draws import Cursor, DrawingStream, Generating, collate

datasets = pytest.importorskip("datasets")
distributed = pytest.importorskip("datasets.distributed")

Rows = dict[str, Any]


def build(dataset: Any, world_size: int = 1, rank: int = 0, **changes: Any) -> DataLoader[Any]:
    arguments = {
        "batch_size": 2,
        "collate_fn": collate,
        "drop_last": False,
        "options": LoaderOptions(),
        "stream": DataStream(3, rank, world_size),
        **changes,
    }
    return build_loader(dataset, sampler=None, rank=rank, world_size=world_size, **arguments)


def through_a_file(state: dict[str, Any] | None) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def taken(batches: Iterator[Any], count: int) -> list[str]:
    return [str(next(batches)) for _ in range(count)]


def rest(batches: Iterator[Any]) -> list[str]:
    return [str(batch) for batch in batches]


def generated(count: int = 24, first: int = 0) -> Any:
    """As from_generator makes it, without the hash of the generator that takes its time."""

    def examples(shards: list[int]) -> Iterator[tuple[int, Rows]]:
        for shard in shards:
            for index in range(shard * count // 3, (shard + 1) * count // 3):
                yield index, {"x": first + index, "group": index // 3}

    return datasets.IterableDataset(datasets.iterable_dataset.ExamplesIterable(examples, {"shards": [0, 1, 2]}))


def jittered() -> Any:
    """Drawn in the generator, which is run from a shard's start when it is entered."""

    def examples(shards: list[int]) -> Iterator[tuple[int, Rows]]:
        yield from ((index, {"x": random.random()}) for index in range(24))

    return datasets.IterableDataset(datasets.iterable_dataset.ExamplesIterable(examples, {"shards": [0]}))


def tabled(count: int = 23, first: int = 0) -> Any:
    columns = {"x": list(range(first, first + count)), "group": [index // 3 for index in range(count)]}
    return datasets.Dataset.from_dict(columns).to_iterable_dataset(num_shards=3)


def double(row: Rows) -> Rows:
    return {"x": row["x"] * 2}


def double_all(rows: Rows) -> Rows:
    return {"x": [x * 2 for x in rows["x"]]}


def of_another_length(rows: Rows) -> Rows:
    return {"x": [10 * x + copy for x in rows["x"] for copy in range(x % 3)]}


async def double_later(row: Rows) -> Rows:
    return {"x": row["x"] * 2}


def jitter(row: Rows) -> Rows:
    return {"x": row["x"] + random.random() + float(torch.rand(()))}


async def jitter_later(row: Rows) -> Rows:
    return jitter(row)


def jitter_all(rows: Rows) -> Rows:
    return {"x": [x + random.random() for x in rows["x"]]}


BATCHED = {"batched": True, "batch_size": 4}
EXACT: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda data: data(),
    "map": lambda data: data().map(double),
    "map with indices": lambda data: data().map(lambda row, index: {"x": index}, with_indices=True),
    "batched map": lambda data: data().map(double_all, **BATCHED),
    "batched map of another length": lambda data: data().map(
        of_another_length, remove_columns=["x", "group"], **BATCHED
    ),
    "two batched maps": lambda data: data().map(double_all, **BATCHED).map(double_all, batched=True, batch_size=3),
    "asynchronous map": lambda data: data().map(double_later),
    "filter": lambda data: data().filter(lambda row: row["x"] % 3 != 0),
    "batched filter and map": lambda data: (
        data().filter(lambda rows: [x % 3 != 0 for x in rows["x"]], **BATCHED).map(double_all, **BATCHED)
    ),
    "skip, take": lambda data: data().skip(3).take(17),
    "skip after a batched map": lambda data: data().map(double_all, **BATCHED).skip(3),
    "repeat": lambda data: data(9).repeat(2),
    "renamed, selected": lambda data: data().rename_column("x", "y").select_columns(["y"]),
    "cast": lambda data: data().cast(
        datasets.Features({"x": datasets.Value("float32"), "group": datasets.Value("int32")})
    ),
    "interleave": lambda data: datasets.interleave_datasets([data(), data(9, first=100)]),
    "interleave by chance": lambda data: datasets.interleave_datasets(
        [data(), data(9, first=100)], probabilities=[0.7, 0.3], seed=3, stopping_strategy="all_exhausted"
    ),
    "concatenate": lambda data: datasets.concatenate_datasets([data(9), data(9, first=100)]),
    "batch": lambda data: data().batch(2),
    "torch": lambda data: data().with_format("torch"),
    "batched map of tensors": lambda data: data().with_format("torch").map(double, **BATCHED),
    "batched map of tables": lambda data: data().with_format("arrow").map(lambda table: table, **BATCHED),
    "part of a node": lambda data: distributed.split_dataset_by_node(data(), 1, 2),
}
NOT_EXACT: dict[str, Callable[[Any], Any]] = {
    "shuffle": lambda data: data().shuffle(seed=1, buffer_size=6),
    "map after shuffle": lambda data: data().shuffle(seed=1, buffer_size=6).map(double_all, **BATCHED),
    "random batched map": lambda data: data().map(jitter_all, **BATCHED),
    "random asynchronous map": lambda data: data().map(jitter_later),
    "random map, given as tables": lambda data: data().map(jitter).with_format("arrow"),
    "random map before a batched one": lambda data: data().map(jitter).map(lambda rows: rows, **BATCHED),
}


def cases(chains: dict[str, Callable[[Any], Any]]) -> dict[str, Callable[[], Any]]:
    """Each chain over each kind of source."""
    return {
        f"{name}, {data.__name__}": partial(chain, data)
        for name, chain in chains.items()
        for data in (generated, tabled)
    }


EXACT_CASES = {**cases(EXACT), "random map, tabled": lambda: tabled().map(jitter)}
READ_CASES = {**cases(NOT_EXACT), "random map, generated": lambda: generated().map(jitter), "random": jittered}


@pytest.mark.slow
@pytest.mark.parametrize("make", EXACT_CASES.values(), ids=EXACT_CASES)
def test_chains_go_on_exactly_from_every_place(make: Callable[[], Any]) -> None:
    """Also where the resumed run is itself saved and resumed."""
    for epoch in (0, 1):
        whole = rest(batches_from(build(make()), epoch))
        assert len(whole) > 4
        for skip in range(1, len(whole) + 1):
            loader = build(make())
            assert taken(batches_from(loader, epoch), skip) == whole[:skip]
            state = through_a_file(capture_position(loader))
            assert state is not None
            loader = build(make())
            batches = batches_from(loader, epoch, skip, state)
            again = min(skip + 2, len(whole))
            assert taken(batches, again - skip) == whole[skip:again]
            state = through_a_file(capture_position(loader)) if again > skip else state
            assert rest(batches_from(build(make()), epoch, again, state)) == whole[again:]


@pytest.mark.parametrize("case", READ_CASES)
def test_other_chains_are_read(case: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mainspring.data.position")
    make = READ_CASES[case]
    loader = build(make())
    first = rest(batches_from(loader, 0))
    batches = batches_from(loader, 1)
    second = taken(batches, 5)
    assert capture_position(loader) is capture_position(loader) is None
    assert caplog.text.count("the position in the stream is not saved") == 1
    assert ("the buffer of shuffle()" in caplog.text) is ("shuffle" in case)
    second += rest(batches)
    assert rest(batches_from(build(make()), 0)) == first
    assert rest(batches_from(build(make()), 1)) == second
    assert rest(batches_from(build(make()), 1, 5)) == second[5:]
    assert "read past 5 batches in " in caplog.text


def test_draws_in_what_is_read_ahead_are_noticed() -> None:
    """Interleaving reads one example of each source ahead, in threads: how the draws fall is left to chance."""
    loader = build(datasets.interleave_datasets([tabled().map(jitter), tabled().map(jitter)]))
    taken(batches_from(loader, 0), 3)
    assert capture_position(loader) is None


@pytest.mark.parametrize("make", [lambda: tabled().map(jitter), lambda: tabled().map(jitter_all, **BATCHED)])
def test_one_worker_draws_what_the_training_process_draws(make: Callable[[], Any]) -> None:
    """Whether the position is watched or not."""
    expected = [rest(batches_from(build(make()), epoch)) for epoch in (0, 1)]
    loader = build(make(), options=LoaderOptions(num_workers=1))
    assert [rest(batches_from(loader, epoch)) for epoch in (0, 1)] == expected


def test_nothing_before_the_position_is_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mainspring.data.position")
    mapped: list[int] = []

    def noted(row: Rows) -> Rows:
        mapped.append(row["x"])
        return row

    for make, reads in (
        (lambda: tabled(9000).map(noted), mapped),
        (lambda: Cursor(9000), None),
    ):
        loader = build(make())
        taken(batches_from(loader, 0), 2000)
        state = through_a_file(capture_position(loader))
        mapped.clear()
        stream = make()
        taken(batches_from(build(stream), 0, 2000, state), 1)
        assert (stream.reads if reads is None else len(reads)) == 2
    assert not caplog.records


def test_another_reading_of_the_same_source_does_no_harm() -> None:
    """Evaluation and training data are often the beginning and the rest of one stream."""
    source = generated()
    train, evaluation = source.skip(6), source.take(6)
    loader = build(train)
    batches = batches_from(loader, 0)
    taken(batches, 3)
    assert len(rest(iter(build(evaluation)))) == 3
    taken(batches, 1)
    list(train)
    state = capture_position(loader)
    expected = rest(batches)
    assert rest(batches_from(build(generated().skip(6)), 0, 4, state)) == expected


def test_entering_leaves_the_users_dataset_at_its_start() -> None:
    stream = generated()
    loader = build(stream)
    taken(batches_from(loader, 1), 4)
    state = capture_position(loader)
    loader = build(stream)
    rest(batches_from(loader, 1, 4, state))
    assert len(rest(batches_from(loader, 1))) == 12
    assert len(list(stream)) == 24


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(
    "make", [lambda: tabled(21), lambda: Cursor(21), lambda: Generating(21)], ids=["datasets", "cursor", "generator"]
)
def test_processes_that_read_the_same_stream(make: Callable[[], Any], even: bool) -> None:
    """The last block lacks samples: it is completed with those of the first."""
    for rank in range(2):
        whole = rest(batches_from(build(make(), 2, rank, even=even), 0))
        for skip in range(1, len(whole) + 1):
            saving = build(make(), 2, 0, even=even)
            taken(batches_from(saving, 0), min(skip, 6 - (not even)))
            state = through_a_file(capture_position(saving)) if skip < 6 else None
            stream = make()
            loader = build(stream, 2, rank, even=even)
            assert rest(batches_from(loader, 0, skip, state)) == whole[skip:]
            assert loader.dataset.dataset is stream


def test_a_position_of_another_place_is_read_up_to(caplog: pytest.LogCaptureFixture) -> None:
    loader = build(generated())
    taken(batches_from(loader, 1), 4)
    state = capture_position(loader)
    whole = {epoch: rest(batches_from(build(generated()), epoch)) for epoch in (0, 1)}
    for epoch, skip, what in ((0, 4, "epoch"), (1, 5, "samples")):
        caplog.clear()
        assert rest(batches_from(build(generated()), epoch, skip, state)) == whole[epoch][skip:]
        assert f"another {what}" in caplog.text
    mapped = build(generated().map(double))
    assert len(rest(batches_from(mapped, 1, 4, state))) == 8
    assert "another stream" in caplog.text
    assert rest(batches_from([1, 2, 3], 1, 1, state)) == ["2", "3"]
    assert "not one of ours" in caplog.text


def test_another_batch_size_or_number_of_processes_is_the_same_place() -> None:
    loader = build(tabled(24))
    taken(batches_from(loader, 0), 4)
    state = capture_position(loader)
    assert state is not None
    for size, world_size in ((4, 1), (1, 2), (2, 2)):
        skip = 8 // (size * world_size)
        entered = build(tabled(24), world_size, batch_size=size)
        read = build(tabled(24), world_size, batch_size=size)
        assert entered.enter(skip, state) is None
        assert rest(batches_from(entered, 0, skip, state)) == rest(batches_from(read, 0, skip))


def test_where_there_is_nothing_to_save(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mainspring.data.position")
    plain = build(generated(), stream=None)
    list(plain)
    assert capture_position(plain) is None
    assert capture_position([1, 2]) is None
    assert not caplog.records
    unread = build(generated())
    assert capture_position(unread) is None
    for loader, reason in (
        (build(generated(), options=LoaderOptions(num_workers=1)), "worker processes"),
        (build(DrawingStream(9)), "DrawingStream has no state_dict"),
    ):
        next(iter(loader))
        assert capture_position(loader) is None
        assert reason in caplog.text


def test_a_state_that_no_checkpoint_may_hold_is_not_saved(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Cursor):
        def state_dict(self) -> dict[str, Any]:
            return {"next": self}

    caplog.set_level(logging.INFO, logger="mainspring.data.position")
    loader = build(Odd(9))
    next(iter(loader))
    assert capture_position(loader) is None
    assert "objects that are not read from a checkpoint" in caplog.text


def test_workers_that_are_new_read_up_to_a_saved_position(caplog: pytest.LogCaptureFixture) -> None:
    loader = build(tabled())
    batches = batches_from(loader, 0)
    taken(batches, 4)
    state = capture_position(loader)
    with_worker = build(tabled(), options=LoaderOptions(num_workers=1))
    assert rest(batches_from(with_worker, 0, 4, state)) == rest(batches)
    assert "worker processes" in caplog.text


def test_unknown_links_are_not_trusted() -> None:
    class Odd(datasets.iterable_dataset.ExamplesIterable):
        pass

    loader = build(datasets.IterableDataset(Odd(lambda: enumerate([{"x": 1}] * 9), {})))
    next(iter(loader))
    assert capture_position(loader) is None
    assert "Odd is not known" in loader.obstacle()


def test_versions_that_go_on_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = build(tabled())
    next(iter(loader))
    assert capture_position(loader) is not None
    monkeypatch.setattr(datasets, "__version__", "5.1.0")
    assert capture_position(loader) is None
    assert loader.obstacle() is not None


def test_long_reading_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("mainspring.data.position._LONG", -1.0)
    list(batches_from(build(generated()), 0, 3))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
