"""A collator with a seed of its own: the same numbers for any number of workers, and after a resume."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import DataLoader

from mainspring import Trainer, TrainingArguments
from mainspring.data.collators import DataCollatorForLanguageModeling, RemoveColumnsCollator
from mainspring.data.loaders import LoaderOptions, build_loader
from mainspring.data.position import batches_from
from mainspring.data.random_stream import DataStream, batch_place
from mainspring.data.samplers import EpochRandomSampler
from tests.data.collators.oracle import VOCABULARY, word_tokenizer
from tests.helpers.data import Stream
from tests.helpers.models import tiny_bert

ROWS = [{"input_ids": [number] * 24} for number in range(5, 27)]
"""Texts of one word each."""


def masking(seed: int | None = 11, framework: str = "pt") -> DataCollatorForLanguageModeling:
    return DataCollatorForLanguageModeling(word_tokenizer(), seed=seed, return_tensors=framework, mlm_probability=0.3)


def plain_loader(collate: Any, workers: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(ROWS, batch_size=4, collate_fn=collate, num_workers=workers, **options)


def drawn_loader(collate: Any, workers: int = 0, rank: int = 0, world_size: int = 1, seed: int = 3) -> Any:
    return build_loader(
        ROWS,
        batch_size=4 // world_size,
        collate_fn=collate,
        sampler=EpochRandomSampler(len(ROWS), seed=1),
        drop_last=False,
        rank=rank,
        world_size=world_size,
        options=LoaderOptions(num_workers=workers),
        stream=DataStream(seed, rank, world_size),
    )


def contents(batches: Any) -> list[Any]:
    return [(batch["input_ids"].tolist(), batch["labels"].tolist()) for batch in batches]


def places(batches: Any) -> list[Any]:
    """Which places of each text are masked, whichever text it is."""
    return [[[label != -100 for label in row] for row in batch["labels"].tolist()] for batch in batches]


# ---- in a plain loader, as in the reference's ----


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_in_a_plain_loader_batches_are_the_reference_s(workers: int, framework: str) -> None:
    theirs = transformers.DataCollatorForLanguageModeling(
        word_tokenizer(), seed=11, return_tensors=framework, mlm_probability=0.3
    )
    assert contents(plain_loader(masking(framework=framework), workers)) == contents(plain_loader(theirs, workers))


def test_workers_have_streams_of_their_own_and_begin_them_anew() -> None:
    collate = masking()
    first = places(plain_loader(collate, workers=2))
    assert first[0] != first[1], "two workers drew the same"
    collate(ROWS)
    assert places(plain_loader(collate, workers=2)) == first, "what the process had drawn went on in a worker"


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    masking()(ROWS)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_can_be_sent_to_another_process_at_any_time() -> None:
    collate = masking()
    collate(ROWS)
    expected = contents([collate(ROWS)])
    again = pickle.loads(pickle.dumps(masking()))
    again(ROWS)
    assert contents([again(ROWS)]) == expected


# ---- in a loader of ours ----


@pytest.fixture(scope="module")
def whole() -> list[Any]:
    return contents(batches_from(drawn_loader(masking()), epoch=2))


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [0, 1, 4])
def test_workers_and_the_place_of_entry_change_nothing(workers: int, skip: int, framework: str) -> None:
    expected = contents(batches_from(drawn_loader(masking(framework=framework)), epoch=2))
    loader = drawn_loader(masking(framework=framework), workers)
    assert contents(batches_from(loader, epoch=2, skip=skip)) == expected[skip:]


def test_batches_and_epochs_differ(whole: list[Any]) -> None:
    loader = drawn_loader(masking())
    drawn = [row for epoch in range(3) for batch in places(batches_from(loader, epoch)) for row in batch]
    assert len({tuple(row) for row in drawn}) == len(drawn)
    assert contents(batches_from(loader, epoch=2)) == whole


def test_only_the_collator_s_seed_counts() -> None:
    """So that evaluations of runs with different seeds mask alike."""
    assert places(drawn_loader(masking(), seed=3)) == places(drawn_loader(masking(), seed=4))
    assert places(drawn_loader(masking(11))) != places(drawn_loader(masking(12)))
    assert places(drawn_loader(masking(None), seed=3)) != places(drawn_loader(masking(None), seed=4))


def test_it_may_be_wrapped(whole: list[Any]) -> None:
    wrapped = RemoveColumnsCollator(masking(), ["input_ids"])
    assert contents(batches_from(drawn_loader(wrapped, workers=2), epoch=2)) == whole


def test_processes_draw_numbers_of_their_own() -> None:
    ranks = [places(drawn_loader(masking(), rank=rank, world_size=2)) for rank in range(2)]
    rows = [tuple(row) for batches in ranks for batch in batches for row in batch]
    assert len(set(rows)) == len(rows)


def test_streams_that_every_process_reads() -> None:
    def read(rank: int, workers: int = 0) -> list[Any]:
        loader = build_loader(
            Stream(ROWS),
            batch_size=2,
            collate_fn=masking(),
            sampler=None,
            drop_last=False,
            rank=rank,
            world_size=2,
            options=LoaderOptions(num_workers=workers),
            stream=DataStream(3, rank, 2),
        )
        return places(batches_from(loader, epoch=1))

    assert read(0) == read(0, workers=1)
    rows = [tuple(row) for rank in range(2) for batch in read(rank) for row in batch]
    assert len(set(rows)) == len(rows)


def test_the_place_is_known_only_while_a_batch_is_made() -> None:
    seen: list[Any] = []

    def note(rows: list[Any]) -> int:
        seen.append(batch_place())
        return len(rows)

    for rank in range(2):
        for _ in batches_from(drawn_loader(note, rank=rank, world_size=2), epoch=5):
            assert batch_place() is None
    assert sorted(seen) == [(5, number) for number in range(len(seen))]
    with pytest.raises(ZeroDivisionError):
        list(drawn_loader(lambda rows: 1 // 0))
    assert batch_place() is None


# ---- in a training ----


class Stop(Exception):
    """Ends a run in the middle."""


def trainer(folder: Path, collate: Any, **options: Any) -> Trainer:
    torch.manual_seed(5)
    defaults = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return Trainer(
        transformers.BertForMaskedLM(tiny_config()),
        TrainingArguments(str(folder), **{**defaults, **options}),
        data_collator=collate,
        train_dataset=[dict(row) for row in ROWS],
        eval_dataset=[dict(row) for row in ROWS[:6]],
    )


def tiny_config() -> Any:
    config = tiny_bert(dropout=0.1).config
    config.vocab_size = VOCABULARY
    return config


def outcome(run: Trainer) -> list[Any]:
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    return [losses, *(value.tolist() for value in run.model.state_dict().values())]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    run = trainer(tmp_path_factory.mktemp("whole"), masking())
    run.train()
    return outcome(run)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_masks_as_if_it_had_not_stopped(
    step: int, workers: int, tmp_path: Path, uninterrupted: list[Any]
) -> None:
    class Stopping(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == step:
                raise Stop

    stopped = trainer(tmp_path, masking(), dataloader_num_workers=workers)
    stopped.add_callback(Stopping())
    with pytest.raises(Stop):
        stopped.train()
    resumed = trainer(tmp_path, masking(), dataloader_num_workers=workers)
    resumed.train(resume_from_checkpoint=True)
    assert outcome(resumed) == uninterrupted


def test_every_evaluation_masks_alike(tmp_path: Path) -> None:
    run = trainer(tmp_path, masking())
    assert run.evaluate()["eval_loss"] == run.evaluate()["eval_loss"]


@pytest.mark.parametrize("make", [masking, lambda: masking(None)], ids=["seeded", "global"])
def test_workers_do_not_change_a_run(make: Callable[[], Any], tmp_path: Path) -> None:
    outcomes = []
    for workers in (0, 2):
        run = trainer(tmp_path / str(workers), make(), max_steps=3, dataloader_num_workers=workers)
        run.train()
        outcomes.append(outcome(run))
    assert outcomes[0] == outcomes[1]
