"""A run resumed from any of its checkpoints is the uninterrupted run: weights, logs, order of samples."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import EarlyStoppingCallback, Trainer, TrainerCallback
from tests.helpers.runs import history, same, trainer, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, dict[str, torch.Tensor]]:
    run = trainer(tmp_path_factory.mktemp("whole"))
    run.train()
    return run, weights(run)


@pytest.mark.parametrize("step", range(1, 10))
def test_every_checkpoint_continues_the_same_run(step: int, whole: Any, tmp_path: Path) -> None:
    """With dropout, accumulation with a short last update, a loss window half full, and events at the epoch's end."""
    uninterrupted, expected = whole
    resumed = trainer(tmp_path)
    output = resumed.train(resume_from_checkpoint=Path(uninterrupted.args.output_dir) / f"checkpoint-{step}")
    assert same(expected, weights(resumed))
    assert history(resumed) == history(uninterrupted)
    assert output.training_loss == uninterrupted.state.log_history[-1]["train_loss"]


def test_nothing_before_the_position_is_read(whole: Any, tmp_path: Path) -> None:
    uninterrupted, _ = whole
    resumed = trainer(tmp_path, max_steps=5, num_train_epochs=3)
    resumed.train(resume_from_checkpoint=Path(uninterrupted.args.output_dir) / "checkpoint-4")
    # Update 5 is the second of the second epoch: two micro-batches of four samples, and nothing else.
    assert len(resumed.train_dataset.reads) == 8


def test_another_batch_size_goes_on_with_the_next_sample(whole: Any, tmp_path: Path) -> None:
    """Eight samples of an epoch were trained on in micro-batches of four: with batches of two, four are skipped."""
    uninterrupted, _ = whole
    resumed = trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    resumed.train(resume_from_checkpoint=Path(uninterrupted.args.output_dir) / "checkpoint-1")
    order = torch.randperm(22, generator=torch.Generator().manual_seed(42)).tolist()
    assert resumed.train_dataset.reads[:14] == order[8:]


def test_a_finished_run_does_no_further_update(whole: Any, tmp_path: Path) -> None:
    uninterrupted, expected = whole
    events: list[str] = []

    class Saves(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.append("save")

    resumed = trainer(tmp_path, max_steps=9, callbacks=[Saves()])
    output = resumed.train(resume_from_checkpoint=Path(uninterrupted.args.output_dir) / "checkpoint-9")
    assert output.global_step == 9
    assert same(expected, weights(resumed))
    assert not resumed.train_dataset.reads
    assert events == []


def test_true_takes_the_newest_and_the_option_is_read(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=2).train()
    steps: list[int] = []

    class Steps(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    trainer(tmp_path, max_steps=3, callbacks=[Steps()]).train(resume_from_checkpoint=True)
    newest = str(tmp_path / "checkpoint-3")
    trainer(tmp_path, max_steps=4, callbacks=[Steps()], resume_from_checkpoint=newest).train()
    trainer(tmp_path, max_steps=4, callbacks=[Steps()], resume_from_checkpoint=newest).train(
        resume_from_checkpoint=False
    )
    assert steps == [2, 3, 0]


def test_a_broken_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=1).train()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match=r"checkpoint-1 was not valid: trainer_state\.json"):
        trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def test_patience_is_not_forgotten(tmp_path: Path) -> None:
    """Early stopping with its counter at one goes on counting from there."""
    options = {"metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.0}
    stopping = EarlyStoppingCallback(early_stopping_patience=3)
    trainer(tmp_path, max_steps=2, callbacks=[stopping], **options).train()
    assert stopping.early_stopping_patience_counter == 1
    resumed = trainer(tmp_path, max_steps=9, callbacks=[EarlyStoppingCallback(early_stopping_patience=3)], **options)
    assert resumed.train(resume_from_checkpoint=True).global_step == 4
    fresh = trainer(
        tmp_path,
        max_steps=9,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
        restore_callback_states_from_checkpoint=False,
        **options,
    )
    assert fresh.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2")).global_step == 5


def test_the_loss_window_starts_anew_where_that_is_asked_for(whole: Any, tmp_path: Path) -> None:
    uninterrupted, _ = whole
    resumed = trainer(tmp_path, resume_log_window=False)
    resumed.train(resume_from_checkpoint=Path(uninterrupted.args.output_dir) / "checkpoint-1")
    ours, theirs = history(resumed)[0], history(uninterrupted)[0]
    assert ours["step"] == theirs["step"] == 2
    assert ours["loss"] != theirs["loss"]


class InterruptAt(TrainerCallback):
    """Ctrl-C in the middle of an update."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("step", [0, 2, 3, 7])
def test_an_interrupted_run_saves_and_continues(step: int, whole: Any, tmp_path: Path) -> None:
    _, expected = whole
    with pytest.raises(KeyboardInterrupt, match=f"SIGINT: stopped at step {step + 1} of 9.*checkpoint-{step + 1}"):
        trainer(tmp_path, save_steps=500, callbacks=[InterruptAt(step)]).train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (
        json.loads((tmp_path / f"checkpoint-{step + 1}" / "trainer_state.json").read_text())["global_step"] == step + 1
    )
    resumed = trainer(tmp_path, save_steps=500)
    resumed.train(resume_from_checkpoint=True)
    assert same(expected, weights(resumed))


class InterruptOn(TrainerCallback):
    """Ctrl-C at an event, the `count`-th time it happens."""

    def __init__(self, event: str, count: int) -> None:
        self.left = count
        setattr(self, event, self.happen)

    def happen(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("event", "count", "step"),
    [("on_epoch_end", 3, 9), ("on_evaluate", 3, 9), ("on_evaluate", 1, 3), ("on_save", 2, 2)],
)
def test_an_interrupt_is_never_swallowed(event: str, count: int, step: int, tmp_path: Path) -> None:
    """Not at the end of the last epoch, not in an evaluation, not while saving."""
    with pytest.raises(KeyboardInterrupt, match=f"SIGINT: stopped at step {step} of 9"):
        trainer(tmp_path, callbacks=[InterruptOn(event, count)]).train()
    assert (tmp_path / f"checkpoint-{step}").is_dir()


def test_an_interrupt_before_the_first_update_has_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="SIGINT: stopped at step 0 of 9$"):
        trainer(tmp_path, eval_on_start=True, callbacks=[InterruptOn("on_evaluate", 1)]).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, save_steps=500, callbacks=[InterruptAt(2, times=2)]).train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("option", [{"save_strategy": "no"}, {"save_only_model": True, "save_steps": 500}])
def test_without_a_checkpoint_to_go_on_from_an_interrupt_is_pythons_own(option: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, **option, callbacks=[InterruptAt(2)]).train()
    assert not list(tmp_path.glob("checkpoint-*"))
