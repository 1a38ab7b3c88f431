"""A run on data of any kind, in a loader of any making, goes on where it stood: same samples, same weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from mainspring.checkpoint import reseal
from tests.helpers import loaders
from tests.helpers.loaders import FOREIGN, Noting, trainer

Build = Callable[[Path], Noting]


def went_on_exactly(folder: Path, build: Build, steps: tuple[int, ...] = (2, 6, 8)) -> Noting:
    """Resume inside the first epoch, at its end, and in the second one; returns the last of the resumed runs."""
    whole = build(folder)
    whole.train()
    resumed = whole
    for step in steps:
        resumed = build(folder / f"from-{step}")
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert resumed.seen == whole.seen[step:], step
        assert torch.equal(resumed.model.weight, whole.model.weight), step
        assert [log["loss"] for log in logs(resumed)] == [log["loss"] for log in logs(whole)], step
    return resumed


def flat(batches: list[list[int]]) -> list[int]:
    return [sample for batch in batches for sample in batch]


def logs(run: Noting) -> list[dict[str, float]]:
    logged = [log for log in run.state.log_history if "loss" in log]
    return [{name: value for name, value in log.items() if name != "data_wait_fraction"} for log in logged]


# ---- loaders of the script's own ----


@pytest.mark.parametrize("name", FOREIGN)
def test_a_loader_of_the_scripts_own(name: str, tmp_path: Path) -> None:
    went_on_exactly(tmp_path, lambda folder: trainer(folder, own=FOREIGN[name]))


@pytest.mark.parametrize("name", ["shuffled", "weighted", "stream", "in a row"])
@pytest.mark.parametrize("seedable", [True, False])
def test_one_that_accelerate_has_prepared(name: str, seedable: bool, tmp_path: Path) -> None:
    settings = {"use_seedable_sampler": seedable}
    went_on_exactly(
        tmp_path, lambda folder: trainer(folder, own=FOREIGN[name], prepares=True, accelerator_config=settings)
    )


def test_orders_of_epochs_differ_and_hold_every_sample(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, own=FOREIGN["shuffled"], max_steps=-1, num_train_epochs=2, save_strategy="no", save_steps=500
    )
    run.train()
    first, second = flat(run.seen[:6]), flat(run.seen[6:])
    assert sorted(first) == sorted(second) == list(range(loaders.COUNT))
    assert first != second


def test_data_without_a_length_needs_a_number_of_updates(tmp_path: Path) -> None:
    run = trainer(tmp_path, own=FOREIGN["endless sampler"], max_steps=-1)
    with pytest.raises(ValueError, match="max_steps"):
        run.train()


# ---- torchdata's ----


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"shuffle": True, "generator": True},
        {"shuffle": True, "num_workers": 1},
        {"dataset": loaders.Standing},
        {"dataset": loaders.Stream},
    ],
    ids=str,
)
def test_a_stateful_loader_says_where_it_stands(options: dict[str, Any], tmp_path: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def own() -> Any:
        given = {"collate_fn": loaders.collate, "batch_size": loaders.BATCH, **options}
        dataset = given.pop("dataset", loaders.Numbers)()
        if given.pop("generator", False):
            given["generator"] = torch.Generator().manual_seed(4)
        return stateful.StatefulDataLoader(dataset, **given)

    steps = (2, 8) if options.get("dataset") is loaders.Stream else (2, 6, 8)
    went_on_exactly(tmp_path, lambda folder: trainer(folder, own=own), steps)


def test_a_stateful_loader_reads_nothing_twice(tmp_path: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    data = loaders.Standing()

    def own() -> Any:
        return stateful.StatefulDataLoader(data, batch_size=loaders.BATCH, collate_fn=loaders.collate)

    trainer(tmp_path, own=own).train()
    data.reads = data.next = 0
    resumed = trainer(tmp_path / "resumed", own=own)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert len(flat(resumed.seen)) == data.reads


# ---- the package's own ----


class Weighted(Noting):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return WeightedRandomSampler(torch.ones(loaders.COUNT), loaders.COUNT)


class Lazy(Noting):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return loaders.Lazy()


OWN: dict[str, dict[str, Any]] = {
    "map": {},
    "order drawn from the global generator": {"accelerator_config": {"use_seedable_sampler": False}},
    "the same, by workers": {
        "accelerator_config": {"use_seedable_sampler": False},
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
    },
    "weighted sampler": {"kind": Weighted},
    "weighted sampler and a worker": {"kind": Weighted, "dataloader_num_workers": 1},
    "sampler that draws as it goes": {"kind": Lazy},
    "stream": {"dataset": loaders.Stream},
    "endless stream": {"dataset": loaders.Endless},
    "stream with a generator": {"dataset": loaders.Seeded},
    "stream with a generator, by a worker": {"dataset": loaders.Seeded, "dataloader_num_workers": 1},
    "stream that says where it stands": {"dataset": loaders.Standing},
}


@pytest.mark.parametrize("name", OWN)
def test_our_loaders(name: str, tmp_path: Path) -> None:
    def build(folder: Path) -> Noting:
        options = dict(OWN[name])
        data = options.pop("dataset", loaders.Numbers)()
        return trainer(folder, data, **options)

    went_on_exactly(tmp_path, build)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_that_are_started_anew(context: str, tmp_path: Path) -> None:
    """The trainer's collator, with the columns that it leaves out, goes to them by pickling."""
    options = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": context}
    went_on_exactly(tmp_path, lambda folder: trainer(folder, **options), steps=(8,))
    alone = trainer(tmp_path / "alone")
    alone.train()
    other = trainer(tmp_path / "other", dataloader_prefetch_factor=3, dataloader_persistent_workers=True, **options)
    other.train()
    assert other.seen == alone.seen


def test_a_stream_with_a_generator_is_in_another_order_in_each_epoch(tmp_path: Path) -> None:
    """A function of the epoch, whatever was drawn before."""
    first, second = (trainer(tmp_path, loaders.Seeded(), save_strategy="no", save_steps=500) for _ in range(2))
    second.train_dataset.generator.manual_seed(99)
    first.train()
    second.train()
    assert first.seen == second.seen
    assert first.seen[:3] != first.seen[6:9]


# ---- the datasets library ----


def table() -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"x": [float(i) for i in range(loaders.COUNT)], "name": ["a"] * loaders.COUNT})


def transformed() -> Any:
    """`x` is made of a column that the model does not take, with a random number that training must not see twice."""
    return table().rename_column("x", "raw").with_transform(lambda rows: {"x": rows["raw"]})


LIBRARY: dict[str, Callable[[], Any]] = {
    "table": table,
    "format of torch": lambda: table().with_format("torch"),
    "format of numpy": lambda: table().with_format("numpy"),
    "format of some columns": lambda: table().with_format("torch", columns=["x"]),
    "transform": transformed,
    "stream": lambda: table().to_iterable_dataset(num_shards=2),
    "mapped stream of torch": lambda: (
        table().to_iterable_dataset(num_shards=2).map(lambda row: {"x": row["x"] + 1}).with_format("torch")
    ),
    "shuffled stream": lambda: table().to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=5),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_data_of_the_library(name: str, tmp_path: Path) -> None:
    """With the default collator; the model takes `x` alone."""
    build = LIBRARY[name]
    run = went_on_exactly(tmp_path, lambda folder: trainer(folder, build(), collator=None))
    assert run.args.remove_unused_columns


def test_a_shuffle_buffer_is_read_up_to_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def build(folder: Path) -> Noting:
        return trainer(folder, LIBRARY["shuffled stream"](), collator=None)

    with caplog.at_level(logging.INFO, logger="mainspring"):
        went_on_exactly(tmp_path, build, steps=(8,))
    assert "what is in the buffer of shuffle() would be lost" in caplog.text
    assert "read past 2 batches" in caplog.text


def test_a_shuffled_stream_is_in_another_order_in_each_epoch(tmp_path: Path) -> None:
    run = trainer(tmp_path, LIBRARY["shuffled stream"](), collator=None, save_strategy="no", save_steps=500)
    run.train()
    assert run.seen[:3] != run.seen[6:9]
    assert sorted(flat(run.seen[:6])) == list(range(loaders.COUNT))


def test_shares_of_other_processes_are_not_gone_on_with_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint of two processes that each read data of their own, in the hands of one."""
    trainer(tmp_path, loaders.Stream(loaders.COUNT)).train()
    folder = tmp_path / "checkpoint-2"
    file = folder / "progress.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "order": {"apart": 2}, "world_size": 2}))
    reseal(str(folder))
    with caplog.at_level("WARNING", "mainspring"):
        trainer(tmp_path / "resumed", loaders.Stream(loaders.COUNT)).train(resume_from_checkpoint=str(folder))
    assert "each of 2 processes read data of its own, which 1 divide otherwise" in caplog.text
