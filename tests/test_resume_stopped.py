"""A run that a callback has stopped, and that dies afterwards: it ends as it would have, with no update more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mainspring import EarlyStoppingCallback, Trainer, TrainerCallback
from tests.helpers.runs import history, same, trainer, weights


class Photographs(TrainerCallback):
    """Copies the run's folder at an event, each time: what a death at that instant would leave."""

    def __init__(self, event: str, album: Path) -> None:
        setattr(self, event, self._take)
        self.album = album

    def _take(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shutil.copytree(args.output_dir, self.album / f"{len(list(self.album.iterdir()))}-at-{state.global_step}")


class EndsEpoch(TrainerCallback):
    """Ends each epoch after its second update."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_epoch_stop = state.global_step % 3 == 2


PATIENCE = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": True,  # it falls: no evaluation is better than the first
}


def impatient(folder: Path, *watching: TrainerCallback, **options: Any) -> Trainer:
    return trainer(folder, callbacks=[EarlyStoppingCallback(early_stopping_patience=3), *watching], **options)


def ends_as_it_would_have(run: Any, tmp_path: Path, event: str) -> Trainer:
    """Photograph a run at an event, go on from each photograph, and compare with the run itself."""
    album = tmp_path / "album"
    album.mkdir()
    whole = run(tmp_path / "run", Photographs(event, album))
    whole.train()
    photographs = sorted(album.iterdir())
    assert photographs, f"the run did not come by {event}"
    for photograph in photographs:
        again = run(photograph)
        again.train(resume_from_checkpoint="auto")
        assert history(again) == history(whole), photograph.name
        assert same(weights(again), weights(whole)), photograph.name
        assert again.state.global_step == whole.state.global_step
    return whole


@pytest.mark.parametrize("event", ["on_evaluate", "on_save", "on_epoch_end", "on_train_end"])
def test_an_early_stop_is_kept(event: str, tmp_path: Path) -> None:
    whole = ends_as_it_would_have(lambda *args: impatient(*args, **PATIENCE), tmp_path, event)
    assert whole.state.global_step == 4
    assert whole.state.max_steps == 9


def test_an_early_stop_between_two_epochs_is_kept(tmp_path: Path) -> None:
    epochs = {**PATIENCE, "eval_strategy": "epoch", "save_strategy": "epoch", "eval_steps": None, "save_steps": 0}
    options = {**epochs, "num_train_epochs": 6, "learning_rate": 1e-3}
    whole = ends_as_it_would_have(lambda *args: impatient(*args, **options), tmp_path, "on_save")
    assert whole.state.global_step == 12


@pytest.mark.parametrize("event", ["on_save", "on_epoch_end"])
def test_an_ended_epoch_is_kept(event: str, tmp_path: Path) -> None:
    def run(folder: Path, *watching: TrainerCallback) -> Trainer:
        return trainer(folder, callbacks=[EndsEpoch(), *watching])

    whole = ends_as_it_would_have(run, tmp_path, event)
    assert whole.state.global_step == 8, "of 3, 3 and 3 updates, one was left out"


@pytest.mark.parametrize("event", ["on_save", "on_epoch_end"])
def test_the_log_at_the_end_of_an_epoch_knows_its_last_update(event: str, tmp_path: Path) -> None:
    def run(folder: Path, *watching: TrainerCallback) -> Trainer:
        return trainer(folder, callbacks=list(watching), logging_strategy="epoch")

    whole = ends_as_it_would_have(run, tmp_path, event)
    assert all("grad_norm" in log for log in whole.state.log_history if "loss" in log)


class StopsAt(TrainerCallback):
    """Stops the run after an update, as a time limit would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def test_a_run_that_ended_as_a_callback_wished_is_gone_on_with(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path / "run", callbacks=[StopsAt(4)]).train()
    on = trainer(tmp_path / "run", callbacks=[StopsAt(4)])
    on.train(resume_from_checkpoint=True)
    assert on.state.global_step == 9
    assert same(weights(on), weights(whole))


def test_an_early_stopped_run_that_is_started_again_does_no_further_update(tmp_path: Path) -> None:
    impatient(tmp_path, **PATIENCE).train()
    again = impatient(tmp_path, **PATIENCE)
    again.train(resume_from_checkpoint="auto")
    assert again.state.global_step == 4


def test_a_stopped_run_is_trained_on_where_that_is_asked_for(tmp_path: Path) -> None:
    impatient(tmp_path, **PATIENCE).train()
    on = impatient(tmp_path, **PATIENCE, restore_callback_states_from_checkpoint=False)
    on.train(resume_from_checkpoint=True)
    assert on.state.global_step > 4


def test_a_run_that_came_to_its_planned_end_can_be_made_longer(tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=4).train()
    longer = trainer(tmp_path, max_steps=6)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 6
