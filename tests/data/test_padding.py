"""The share of padding in what a model is fed: counted without waiting, and logged once per window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mainspring import Trainer, TrainingArguments
from mainspring.data.packing import PackedBatch
from mainspring.data.padding import PaddingCount, padding_fraction
from tests.helpers import data, models


def batch(*lengths: int) -> dict[str, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.ones_like(mask, dtype=torch.long), "attention_mask": mask.long()}


def same(value: torch.Tensor) -> torch.Tensor:
    return value


def test_positions_are_told_from_tokens_by_the_mask() -> None:
    count = PaddingCount()
    count.add(batch(4, 2))
    count.add(batch(1, 3, 3))
    assert count.read(same) == (17, 13)
    assert padding_fraction(17, 13) == pytest.approx(4 / 17)
    count.clear()
    assert count.read(same) == (0, 0)


def test_packed_batches_tell_it_themselves() -> None:
    packed = PackedBatch(input_ids=torch.ones(2, 5), attention_mask=torch.ones(2, 1, 5, 5))
    count = PaddingCount()
    count.add(packed)  # what came between has made another batch of it
    assert count.read(same) == (0, 0)
    packed.tokens = 7
    count.add(packed)
    assert count.read(same) == (10, 7)


@pytest.mark.parametrize("other", [{"x": torch.ones(2)}, [torch.ones(2)], {"attention_mask": [[1, 0]]}])
def test_other_batches_tell_nothing(other: Any) -> None:
    count = PaddingCount()
    count.add(other)
    assert padding_fraction(*count.read(same)) is None


def test_adding_reads_no_value() -> None:
    """On an accelerator it would wait for it; a meta tensor has none."""
    count = PaddingCount()
    count.add({"attention_mask": torch.ones(2, 3, device="meta")})
    assert count.positions == 6
    assert isinstance(count.tokens, torch.Tensor)


def test_a_count_is_read_over_all_processes() -> None:
    count = PaddingCount()
    count.add(batch(4, 2))
    assert count.read(lambda value: value * 3) == (24, 18)


def trainer(folder: Path, args: type[Any] = TrainingArguments, samples: Any = None, **options: Any) -> Trainer:
    defaults = {"per_device_train_batch_size": 4, "logging_steps": 2, "max_steps": 5, "save_strategy": "no"}
    given = args(str(folder), **{**defaults, "use_cpu": True, "disable_tqdm": True, **options})
    rows = data.Items(data.ragged_text(24) if samples is None else samples)
    return Trainer(models.tiny_gpt2(), given, train_dataset=rows, data_collator=data.collate_text)


def fractions(of: Trainer) -> list[Any]:
    return [log.get("padding_fraction") for log in of.state.log_history if "loss" in log]


def test_each_log_tells_of_the_batches_since_the_last(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    batches = [one["attention_mask"] for one, _ in zip(run.get_train_dataloader(), range(4), strict=False)]
    run.train()
    windows = [torch.cat([mask.flatten() for mask in batches[start : start + 2]]) for start in (0, 2)]
    assert fractions(run) == pytest.approx([1 - float(window.float().mean()) for window in windows])
    assert all(0 < fraction < 1 for fraction in fractions(run))
    assert "padding_fraction" not in run.state.log_history[-1]  # the summary of the run


def test_samples_of_one_length_have_none(tmp_path: Path) -> None:
    rows = [{"input_ids": torch.arange(3, 9), "labels": torch.arange(3, 9)} for _ in range(24)]
    assert fractions(trainer_of(tmp_path, rows)) == [0.0, 0.0]


def trainer_of(folder: Path, rows: Any) -> Trainer:
    run = trainer(folder, samples=rows)
    run.train()
    return run


def test_batches_without_a_mask_are_not_told_of(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), max_steps=2, logging_steps=1, save_strategy="no", use_cpu=True)
    run = Trainer(models.Regressor(), args, train_dataset=data.Items(data.points(8)))
    run.train()
    assert fractions(run) == [None, None]


@pytest.mark.parametrize("compat", ["5", "4.37"])
def test_the_references_logs_do_not_have_it(compat: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, compat=compat)
    run.train()
    assert fractions(run) == [None, None]


@pytest.mark.parity
def test_the_reference_does_not_log_it(tmp_path: Path) -> None:
    """Or else `compat` would leave it out for nothing."""
    args = transformers.TrainingArguments(str(tmp_path), max_steps=2, logging_steps=1, report_to="none", use_cpu=True)
    rows = data.Items(data.ragged_text(24))
    run = transformers.Trainer(models.tiny_gpt2(), args, train_dataset=rows, data_collator=data.collate_text)
    run.train()
    assert fractions(run) == [None, None]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_resumed_run_goes_on_with_the_window(step: int, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", save_strategy="steps", save_steps=1)
    whole.train()
    resumed = trainer(tmp_path / "resumed", save_strategy="steps", save_steps=100)
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / f"checkpoint-{step}")
    assert fractions(resumed) == fractions(whole)


def test_what_an_exception_interrupts_is_counted_once(tmp_path: Path) -> None:
    """The update in progress is made again by the run that goes on."""

    class Failing(Trainer):
        passes = 0

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            if self.passes == 6:  # the second micro-batch of the third update: the first one was counted
                raise ZeroDivisionError
            return super().training_step(*args, **kwargs)

    options: dict[str, Any] = {
        "max_steps": 4,
        "logging_steps": 4,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "save_on_exception": True,
        "use_cpu": True,
        "disable_tqdm": True,
    }

    def run(kind: type[Trainer], **changes: Any) -> Trainer:
        args = TrainingArguments(str(tmp_path), **{**options, **changes})
        rows = data.Items(data.ragged_text(24))
        return kind(models.tiny_gpt2(), args, train_dataset=rows, data_collator=data.collate_text)

    whole = run(Trainer, save_on_exception=False)
    whole.train()
    with pytest.raises(ZeroDivisionError):
        run(Failing).train()
    resumed = run(Trainer)
    resumed.train(resume_from_checkpoint=True)
    assert fractions(resumed) == fractions(whole)
