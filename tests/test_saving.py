"""What a run does with its checkpoints: failures, retention, other runs, the background, and what changed since."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainerCallback, checkpoint
from tests.helpers import data
from tests.helpers.runs import history, same, trainer, weights


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Full(Trainer):
    """The disk is full at some steps."""

    full_at: tuple[int, ...] = ()

    def _save_scaler(self, output_dir: str) -> None:
        super()._save_scaler(output_dir)
        if self.state.global_step in self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(folder: Path, at: tuple[int, ...], **options: Any) -> Trainer:
    run = trainer(folder, **options)
    run.__class__ = type("FullAt", (Full,), {"full_at": at})
    return run


# ---- failures ----


def test_a_run_survives_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = []

    class Saves(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saved.append(state.global_step)

    run = full(tmp_path, (2, 3), save_steps=1, max_steps=5, callbacks=[Saves()])
    run.train()
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]
    assert saved == [1, 4, 5], "callbacks are told of checkpoints that are there"
    assert not any(checkpoint.verify(tmp_path / name) for name in checkpoints(tmp_path))
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ["checkpoint-2 COULD NOT BE SAVED" in told[0].message, "checkpoint-3" in told[1].message] == [True, True]
    logs = [log for log in run.state.log_history if "loss" in log]
    assert ["failed_saves" in log for log in logs] == [False, True]
    assert logs[1]["failed_saves"] == 2


def test_a_full_disk_ends_the_run_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        full(tmp_path, (2,), save_steps=1, save_failure="raise").train()
    assert checkpoints(tmp_path) == ["checkpoint-1"]


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    began = []
    monkeypatch.setattr(Trainer, "_save_rng_state", lambda self, folder: began.append(folder))
    run = trainer(tmp_path, save_steps=3)
    run.train()
    assert not began
    assert not list(tmp_path.iterdir())
    assert run.state.global_step == 9


def test_the_best_checkpoint_is_one_that_is_there(tmp_path: Path) -> None:
    """The best model's save failed: the one before it counts."""
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "metric_for_best_model": "loss",
        "max_steps": 4,
    }
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    best = whole.state.best_global_step
    assert best is not None
    assert best > 1
    run = full(tmp_path / "full", (best,), load_best_model_at_end=True, **options)
    run.train()
    assert run.state.best_model_checkpoint != str(tmp_path / "full" / f"checkpoint-{best}")
    assert run.state.best_model_checkpoint is not None


# ---- retention, other runs ----


def test_only_this_runs_checkpoints_count(tmp_path: Path) -> None:
    trainer(tmp_path, save_steps=3).train()
    assert checkpoints(tmp_path) == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]
    trainer(tmp_path, save_steps=1, max_steps=5, save_total_limit=2, seed=7).train()
    kept = ["checkpoint-3.other-run", "checkpoint-4", "checkpoint-5", "checkpoint-6", "checkpoint-9"]
    assert checkpoints(tmp_path) == kept
    assert checkpoint.verify(tmp_path / "checkpoint-3.other-run") == []


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    trainer(tmp_path, save_steps=2, max_steps=4).train()
    first = checkpoint.read_manifest(tmp_path / "checkpoint-4")
    trainer(tmp_path, save_steps=2, max_steps=8, save_total_limit=1).train(resume_from_checkpoint=True)
    second = checkpoint.read_manifest(tmp_path / "checkpoint-8")
    assert first is not None
    assert second is not None
    assert first.facts.run_id == second.facts.run_id
    assert checkpoints(tmp_path) == ["checkpoint-8"]


def test_a_manifest_says_what_the_checkpoint_is(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_steps=3, eval_strategy="steps", eval_steps=3, metric_for_best_model="loss")
    run.train()
    manifest = checkpoint.read_manifest(tmp_path / "checkpoint-6")
    assert manifest is not None
    facts = manifest.facts
    evaluated = next(log for log in run.state.log_history if "eval_loss" in log and log["step"] == 6)
    assert (facts.step, facts.samples, facts.world_size, facts.max_steps) == (6, 44, 1, 9)
    assert (facts.metric_name, facts.metric) == ("loss", evaluated["eval_loss"])


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    refused = []

    class Another(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                with pytest.raises(RuntimeError, match=r"is in use by .*choose another output_dir"):
                    trainer(tmp_path).train()
                refused.append(True)
                trainer(tmp_path / "elsewhere", max_steps=1).train()

    trainer(tmp_path, save_steps=500, max_steps=2, callbacks=[Another()]).train()
    assert refused
    trainer(tmp_path, max_steps=1).train()


# ---- what is resumed from ----


def test_a_damaged_checkpoint_is_passed_over_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = trainer(tmp_path / "run")
    whole.train()
    weights_file = tmp_path / "run/checkpoint-9/model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-100] ^= 1
    weights_file.write_bytes(content)
    (tmp_path / "run/checkpoint-8/manifest.json").unlink()
    resumed = trainer(tmp_path / "run", save_steps=500)
    resumed.train(resume_from_checkpoint="auto")
    assert same(weights(whole), weights(resumed))
    assert "model.safetensors is not what was written" in caplog.text
    assert "manifest.json is missing" in caplog.text
    assert {"checkpoint-9.damaged", "checkpoint-8.damaged", "checkpoint-7"} <= set(checkpoints(tmp_path / "run"))


def test_auto_starts_afresh_where_there_is_nothing(tmp_path: Path) -> None:
    assert trainer(tmp_path, resume_from_checkpoint="auto", max_steps=1).train().global_step == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 7}, "seed=7"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy"),
        ({"rows": 30}, "num_examples=30"),
    ],
)
def test_another_order_is_refused_inside_an_epoch(change: Any, said: str, tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=4).train()
    with pytest.raises(ValueError, match=rf"{said}.*ignore_data_skip"):
        trainer(tmp_path, **change).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    trainer(tmp_path, **change).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))  # an epoch's end
    trainer(tmp_path, ignore_data_skip=True, **change).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=3).train()
    with pytest.raises(ValueError, match=r"optim='sgd': it is 'adamw_torch_fused' in the checkpoint"):
        trainer(tmp_path, optim="sgd").train(resume_from_checkpoint=True)


def test_what_the_checkpoint_decides_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, max_steps=3).train()
    trainer(tmp_path, learning_rate=1.0, logging_steps=3).train(resume_from_checkpoint=True)
    assert "learning_rate: 0.01 in the checkpoint, 1.0 now: the optimizer's state goes on" in caplog.text


def test_updates_of_another_size_keep_position_and_schedule(tmp_path: Path) -> None:
    """8 samples an update, then 4 for the rest: as many samples, and the same learning rate at the same sample."""
    options = {"rows": 48, "num_train_epochs": 2, "lr_scheduler_type": "linear", "warmup_steps": 0, "logging_steps": 1}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    assert whole.state.max_steps == 12
    resumed = trainer(tmp_path / "resumed", gradient_accumulation_steps=1, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    assert resumed.state.max_steps == resumed.state.global_step == 4 + 16
    assert resumed.state.epoch == 2.0
    rate = {log["step"]: log["learning_rate"] for log in whole.state.log_history if "learning_rate" in log}
    smaller = {log["step"]: log["learning_rate"] for log in resumed.state.log_history if "learning_rate" in log}
    assert all(math.isclose(smaller[4 + 2 * k + 1], rate[4 + k + 1], rel_tol=1e-9) for k in range(8))
    again = trainer(tmp_path / "again", gradient_accumulation_steps=1, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "resumed/checkpoint-9"))
    assert same(weights(resumed), weights(again))
    assert history(again) == history(resumed)


# ---- the background ----


def test_the_background_writes_the_same_checkpoints(tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []

    class Saves(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            told.append((state.global_step, not checkpoint.verify(folder)))
            (folder / "by_a_callback.txt").write_text("a note")

    whole = trainer(tmp_path / "whole", save_steps=2)
    whole.train()
    run = trainer(tmp_path / "run", save_steps=2, save_in_background=True, callbacks=[Saves()])
    run.train()
    assert told == [(2, True), (4, True), (6, True), (8, True), (9, True)], "in place, and before the next save"
    assert same(weights(whole), weights(run))
    for step in (2, 4, 6, 8, 9):
        ours, theirs = tmp_path / f"run/checkpoint-{step}", tmp_path / f"whole/checkpoint-{step}"
        manifest = checkpoint.read_manifest(ours)
        assert manifest is not None
        assert "by_a_callback.txt" in manifest.files, "sealed again after the callbacks"
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        left, right = (checkpoint.load_torch(place / "optimizer.pt") for place in (ours, theirs))
        assert torch.equal(left["state"][0]["exp_avg"], right["state"][0]["exp_avg"])
    resumed = trainer(tmp_path / "run", save_in_background=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))
    assert same(weights(whole), weights(resumed))


def test_failures_in_the_background_are_told_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = checkpoint.Stage.commit

    def commit(stage: checkpoint.Stage, facts: Any = None) -> None:
        if stage.target.name == "checkpoint-4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(stage, facts)

    monkeypatch.setattr(checkpoint.Stage, "commit", commit)
    run = trainer(tmp_path / "run", save_steps=2, save_in_background=True)
    run.train()
    assert checkpoints(tmp_path / "run") == ["checkpoint-2", "checkpoint-6", "checkpoint-8", "checkpoint-9"]
    assert [log["failed_saves"] for log in run.state.log_history if "failed_saves" in log]
    with pytest.raises(OSError, match="No space left"):
        trainer(tmp_path / "raise", save_steps=2, save_in_background=True, save_failure="raise").train()


def test_the_best_model_of_the_background_is_loaded(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    runs = []
    for flag in (True, False):
        runs.append(trainer(tmp_path / str(flag), save_in_background=flag, save_total_limit=1, **options))
        runs[-1].train()
    assert same(weights(runs[0]), weights(runs[1]))
    assert checkpoints(tmp_path / "True") == checkpoints(tmp_path / "False")


# ---- what is in it ----


class Average(TrainerCallback):
    """A moving average of a weight: a state of tensors."""

    def __init__(self) -> None:
        self.mean: torch.Tensor | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        weight = next(model.parameters()).detach().clone()
        self.mean = weight if self.mean is None else 0.9 * self.mean + 0.1 * weight

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


def test_tensors_of_callbacks_go_on(tmp_path: Path) -> None:
    whole = Average()
    trainer(tmp_path, callbacks=[whole]).train()
    resumed = Average()
    trainer(tmp_path, callbacks=[resumed]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert whole.mean is not None
    assert resumed.mean is not None
    assert torch.equal(whole.mean, resumed.mean)


def test_the_arguments_are_pickled_only_on_request(tmp_path: Path) -> None:
    trainer(tmp_path / "plain", max_steps=1).train()
    trainer(tmp_path / "asked", max_steps=1, save_training_args_bin=True).train()
    assert not (tmp_path / "plain/checkpoint-1/training_args.bin").exists()
    args = torch.load(tmp_path / "asked/checkpoint-1/training_args.bin", weights_only=False)
    assert args.max_steps == 1
    assert json.loads((tmp_path / "asked/checkpoint-1/training_args.json").read_text())["max_steps"] == 1


def test_a_long_run_reads_no_more_than_it_needs(tmp_path: Path) -> None:
    """At update 100,000 of map-style data: one batch, not all that lie before."""
    rows = data.ragged_text(8)

    class Long(torch.utils.data.Dataset[Any]):
        reads = 0

        def __len__(self) -> int:
            return 200_000

        def __getitem__(self, index: int) -> Any:
            Long.reads += 1
            return dict(rows[index % 8])

    def run(max_steps: int) -> Trainer:
        made = trainer(
            tmp_path,
            max_steps=max_steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            logging_steps=500,
        )
        made.train_dataset = Long()
        return made

    run(1).train()
    folder = tmp_path / "checkpoint-1"
    for name, change in (
        ("progress.json", {"batches": 100_000, "epoch_samples": 100_000}),
        ("trainer_state.json", {"global_step": 100_000}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **change}))
    checkpoint.reseal(folder)
    Long.reads = 0
    resumed = run(100_002)
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.state.global_step == 100_002
    assert Long.reads == 2
