"""Runs that are left in awkward places - in evaluations, in their last moments, by exceptions - and what goes on from there."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from mainspring import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, checkpoint
from mainspring.checkpoint.staging import Stage
from mainspring.errors import Preempted

TIMES = ("runtime", "per_second", "wait_fraction")


def rows(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(4, generator=generator),
            "labels": torch.randn((), generator=generator),
            "row": torch.tensor(i),
        }
        for i in range(count)
    ]


class Linear(nn.Module):
    """With dropout, and a memory of the rows that it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.2)
        self.seen: list[int] = []

    def forward(self, x: Tensor, labels: Tensor, row: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.seen += row.tolist()
        return {
            "loss": (self.layer(self.dropout(x)).squeeze(-1) - labels).square().mean(),
            "logits": self.layer(x),
        }


def build(folder: Path, *watching: TrainerCallback, cls: type[Trainer] = Trainer, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    given = {name: changes.pop(name) for name in ("compute_metrics", "eval_dataset") if name in changes}
    data = changes.pop("train_dataset", None) or rows(24)
    options = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    given.setdefault("eval_dataset", rows(8, seed=1))
    arguments = TrainingArguments(str(folder), **options)
    return cls(Linear(), arguments, train_dataset=data, callbacks=list(watching), **given)


def history(of: Trainer) -> list[dict[str, Any]]:
    return [{k: v for k, v in log.items() if not any(t in k for t in TIMES)} for log in of.state.log_history]


def same(left: Trainer, right: Trainer) -> bool:
    pairs = zip(left.model.state_dict().values(), right.model.state_dict().values(), strict=True)
    return history(left) == history(right) and all(torch.equal(a, b) for a, b in pairs)


class At(TrainerCallback):
    """Calls something at an event, the first time that a condition holds."""

    def __init__(self, event: str, when: Callable[[Any], bool], then: Callable[[], object]) -> None:
        self.left, self.when, self.then = 1, when, then
        setattr(self, event, self._call)

    def _call(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.left and self.when(state):
            self.left = 0
            self.then()


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}


# ---- stopped inside evaluations ----


def test_an_evaluation_of_several_sets_is_made_again_as_a_whole(tmp_path: Path) -> None:
    def run(folder: Path, *watching: TrainerCallback) -> Trainer:
        sets = {"a": rows(8, seed=1), "b": rows(8, seed=2)}
        patience = EarlyStoppingCallback(early_stopping_patience=10)
        options = {**EVALUATES, "metric_for_best_model": "a_loss", "load_best_model_at_end": True}
        return build(folder, patience, *watching, eval_dataset=sets, **options)

    whole = run(tmp_path / "whole")
    whole.train()
    evaluated = []

    def inside_the_second_set(state: Any) -> bool:
        evaluated.append(state.global_step)
        return len(evaluated) == 3

    with pytest.raises(Preempted):
        run(tmp_path / "run", At("on_prediction_step", inside_the_second_set, terminate)).train()
    assert names(tmp_path / "run") == ["checkpoint-2"]
    again = run(tmp_path / "run")
    again.train(resume_from_checkpoint=True)
    assert same(again, whole)
    assert patience_of(again) == patience_of(whole)


def patience_of(of: Trainer) -> int:
    callbacks = of.callback_handler.callbacks
    return next(c.early_stopping_patience_counter for c in callbacks if isinstance(c, EarlyStoppingCallback))


def test_an_evaluation_of_a_callbacks_own_is_finished(tmp_path: Path) -> None:
    class Extra(TrainerCallback):
        """Evaluates when something is logged."""

        trainer: Trainer
        busy = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs and state.global_step == 3 and not self.busy:
                self.busy = True
                self.trainer.evaluate(metric_key_prefix="extra")
                self.busy = False

    def run(folder: Path, *watching: TrainerCallback) -> Trainer:
        extra = Extra()
        extra.trainer = build(folder, extra, *watching, **EVALUATES)
        return extra.trainer

    whole = run(tmp_path / "whole")
    whole.train()
    with pytest.raises(Preempted, match="stopped at step 3"):
        run(tmp_path / "run", At("on_prediction_step", lambda state: state.global_step == 3, terminate)).train()
    again = run(tmp_path / "run")
    again.train(resume_from_checkpoint=True)
    assert same(again, whole)


def test_the_evaluation_at_the_start_is_left_after_its_batch(tmp_path: Path) -> None:
    batches = []
    count = At("on_prediction_step", lambda state: batches.append(state.global_step) or False, terminate)
    run = build(
        tmp_path, count, At("on_prediction_step", lambda state: True, terminate), eval_on_start=True, **EVALUATES
    )
    with pytest.raises(Preempted, match="stopped at step 0"):
        run.train()
    assert batches == [0]


class Stream(IterableDataset[dict[str, Tensor]]):
    """Rows that are counted when they are read, with a position of their own."""

    def __init__(self) -> None:
        self.rows, self.at, self.reads = rows(64), 0, 0

    def __iter__(self) -> Any:
        while self.at < len(self.rows):
            self.at += 1
            self.reads += 1
            yield self.rows[self.at - 1]
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def test_a_checkpoint_that_is_written_again_keeps_the_place_in_the_stream(tmp_path: Path) -> None:
    options = {**EVALUATES, "max_steps": 8, "save_steps": 6, "eval_steps": 6}
    stop = At("on_prediction_step", lambda state: state.global_step == 6, terminate)
    with pytest.raises(Preempted):
        build(tmp_path, stop, train_dataset=Stream(), **options).train()
    again = build(tmp_path, train_dataset=Stream(), **options)
    again.train(resume_from_checkpoint=True)
    assert again.train_dataset.reads == 8, "two updates were left"
    assert (tmp_path / "checkpoint-6" / "data_position.pt").is_file()


# ---- stopped when all is trained ----


@pytest.mark.parametrize("background", [False, True])
def test_a_stop_in_the_last_moments_leaves_a_complete_run(background: bool, tmp_path: Path) -> None:
    at_the_end = At("on_train_end", lambda state: True, terminate)
    with pytest.raises(Preempted, match="training is complete at step 6"):
        build(tmp_path, at_the_end, save_in_background=background).train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert not any(checkpoint.verify(tmp_path / name) for name in names(tmp_path))
    again = build(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.model.seen == []


def test_what_continues_a_run_is_where_the_message_says(tmp_path: Path) -> None:
    stop = {"event": "on_prediction_step", "when": lambda state: True, "then": terminate}
    with pytest.raises(Preempted):
        build(tmp_path / "first", At(**stop), **EVALUATES).train()
    with pytest.raises(Preempted, match=str(tmp_path / "second" / "checkpoint-2")):
        build(tmp_path / "second", At(**stop), **EVALUATES).train(str(tmp_path / "first" / "checkpoint-2"))
    assert names(tmp_path / "second") == ["checkpoint-2"]


# ---- ended by an exception ----


def test_an_exception_in_a_metric_saves_what_lies_before_the_evaluation(tmp_path: Path) -> None:
    def run(folder: Path, metric: Callable[[Any], dict[str, float]]) -> Trainer:
        by_epoch = {"logging_strategy": "epoch", "eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}
        return build(folder, save_on_exception=True, save_steps=500, compute_metrics=metric, **by_epoch)

    def broken(prediction: Any) -> dict[str, float]:
        raise ZeroDivisionError

    whole = run(tmp_path / "whole", lambda prediction: {"score": 1.0})
    whole.train()
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", broken).train()
    assert names(tmp_path / "run") == ["checkpoint-6"]
    again = run(tmp_path / "run", lambda prediction: {"score": 1.0})
    again.train(resume_from_checkpoint=True)
    assert same(again, whole)


def test_an_exception_inside_an_update_says_that_nothing_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    stop = At("on_optimizer_step", lambda state: True, broken)
    with pytest.raises(ZeroDivisionError):
        build(tmp_path, stop, save_on_exception=True).train()
    assert "in the middle of an update" in caplog.text
    assert names(tmp_path) == []


# ---- the best checkpoint ----


class Scored(Trainer):
    """Evaluations give these losses, by step."""

    losses = {2: 1.0, 4: 0.1, 6: 0.5}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {**super().evaluate(*args, **kwargs), "eval_loss": self.losses[self.state.global_step]}


BEST = {**EVALUATES, "metric_for_best_model": "loss", "save_total_limit": 1}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("loads", [False, True])
def test_a_best_checkpoint_that_could_not_be_saved_is_none(
    background: bool, loads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Stage.commit

    def full(stage: Stage, facts: Any = None) -> None:
        if stage.target.name == "checkpoint-4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        commit(stage, facts)

    monkeypatch.setattr(Stage, "commit", full)
    run = build(tmp_path, cls=Scored, save_in_background=background, load_best_model_at_end=loads, **BEST)
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert names(tmp_path) == ["checkpoint-2"]


def test_the_last_valid_checkpoint_outlives_a_damaged_best_one(tmp_path: Path) -> None:
    def damage() -> None:
        with (tmp_path / "checkpoint-4" / "model.safetensors").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")

    build(tmp_path, At("on_step_end", lambda state: state.global_step == 6, damage), cls=Scored, **BEST).train()
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    assert not checkpoint.verify(tmp_path / "checkpoint-6")


def test_older_checkpoints_stay_until_callbacks_are_done_with_the_new_one(tmp_path: Path) -> None:
    valid = []

    class Rewrites(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (tmp_path / f"checkpoint-{state.global_step}" / "optimizer.pt").write_bytes(b"smaller")
            valid.append([name for name in names(tmp_path) if not checkpoint.verify(tmp_path / name)])

    build(tmp_path, Rewrites(), save_total_limit=1).train()
    assert valid == [[], ["checkpoint-2"], ["checkpoint-4"]], "a death at that instant loses nothing"
    assert names(tmp_path) == ["checkpoint-6"]


# ---- another batch size ----


@pytest.mark.parametrize(("before", "now"), [(4, 8), (4, 5), (4, 7), (3, 2), (4, 24), (5, 3)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_sample_is_trained_on_once_in_batches_of_another_size(
    before: int, now: int, drop_last: bool, tmp_path: Path
) -> None:
    common = {"max_steps": -1, "num_train_epochs": 2, "dataloader_drop_last": drop_last}
    build(tmp_path / "whole", per_device_train_batch_size=before, save_steps=2, **common).train()
    order = build(tmp_path / "order", per_device_train_batch_size=24)
    order.train()
    done = before * 2
    again = build(tmp_path / "again", per_device_train_batch_size=now, save_steps=1, **common)
    again.train(str(tmp_path / "whole" / "checkpoint-2"))
    left = 24 - done
    first = left - left % now if drop_last else left
    assert order.model.seen[done : done + first] == again.model.seen[:first]
    second = again.model.seen[first:]
    assert len(set(second)) == len(second) == (24 - 24 % now if drop_last else 24)
    assert again.state.global_step == again.state.max_steps
    # and resumed once more, inside that epoch
    saved = [name for name in names(tmp_path / "again") if name == "checkpoint-3"]
    if saved and left > now:
        third = build(tmp_path / "third", per_device_train_batch_size=now, save_steps=100, **common)
        third.train(str(tmp_path / "again" / "checkpoint-3"))
        assert third.model.seen == again.model.seen[now:]
        assert all(torch.equal(a, b) for a, b in zip(third.model.parameters(), again.model.parameters(), strict=True))


# ---- time ----


def test_the_time_of_a_save_is_kept_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each update takes 10 s, each save 35 s, 100 s are given: after 50 s there is just time for one save more."""
    clock = [0.0]
    monkeypatch.setattr("mainspring.callbacks.preemption.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("mainspring.checkpoint.saver.time.perf_counter", lambda: clock[0])

    class Takes(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock[0] += 10.0

    class Slow(Trainer):
        def _save_rng_state(self, output_dir: str) -> None:
            super()._save_rng_state(output_dir)
            clock[0] += 35.0

    run = build(tmp_path, Takes(), cls=Slow, max_time=100, max_steps=20, save_steps=2)
    with pytest.raises(Preempted, match="stopped at step 3"):
        run.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert clock[0] == 100.0


@pytest.mark.parametrize("background", [False, True])
def test_the_next_log_says_how_long_a_save_took(background: bool, tmp_path: Path) -> None:
    def written() -> None:
        for thread in threading.enumerate():
            if thread.name.startswith("save "):
                thread.join()

    later = At("on_step_begin", lambda state: state.global_step == 4, written)
    run = build(tmp_path, later, save_in_background=background, save_steps=3)
    run.train()
    told = [log for log in run.state.log_history if "save_runtime" in log]
    assert told
    assert all(0 < log["save_blocking_runtime"] <= log["save_runtime"] for log in told)
    assert not any("save_runtime" in log for log in run.state.log_history if log["step"] <= 3)


def test_the_references_logs_do_not_say_it(tmp_path: Path) -> None:
    run = build(tmp_path, save_steps=3, compat="5")
    run.train()
    assert not any("save_runtime" in log for log in run.state.log_history)
