"""`on_loss_spike`: updates whose loss jumps are left out, or training goes back to before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainerCallback
from mainspring.errors import NonFiniteError
from mainspring.numerics import spikes
from tests.numerics import runs
from tests.numerics.test_skip import Notes

NAN, FAR = float("nan"), 1e4
ORDER = torch.randperm(64, generator=torch.Generator().manual_seed(42)).tolist()
"""Of sixty-four samples: sixteen updates an epoch."""


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spikes, "WARM_UP", 6)


def rows(wrong: dict[int, float]) -> Any:
    """Targets by the sample's place in the first epoch."""
    return runs.rows(64, {ORDER[place]: value for place, value in wrong.items()})


def trainer(folder: Path, wrong: dict[int, float], on_loss_spike: str, **changes: Any) -> Trainer:
    options = {"num_train_epochs": 1, "loss_spike_threshold": 20.0, **changes}
    return runs.trainer(folder, rows(wrong), on_loss_spike=on_loss_spike, **options)


ROLLBACK = {"on_loss_spike": "rollback", "loss_spike_rollback_updates": 3}


def test_a_spike_is_left_out(tmp_path: Path) -> None:
    run = trainer(tmp_path, {40: FAR}, "skip")
    run.train()
    assert (run.state.global_step, run.state.max_steps) == (15, 15)
    (event,) = runs.events(tmp_path)
    assert (event["step"], event["cause"], event["action"], event["batches"]) == (11, "spike", "skip", [10])
    assert event["loss"] > 1e6
    assert "reports" not in event
    assert max(runs.losses(run)) < 100
    assert runs.logged(run, "skipped_steps") == [0] * 10 + [1] + [0] * 4
    assert runs.logged(run, "nonfinite_steps") == [0] * 15


@pytest.mark.parametrize("mode", ["off", "skip"])
def test_before_the_warm_up_and_below_the_threshold_nothing_is_left_out(mode: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, {6: FAR, 60: 10.0}, mode)
    run.train()
    assert run.state.global_step == 16
    assert not (tmp_path / "nonfinite.jsonl").exists()


def test_looking_for_spikes_changes_nothing(tmp_path: Path) -> None:
    found = []
    for mode in ("off", "skip", "rollback"):
        run = trainer(tmp_path / mode, {}, mode)
        run.train()
        found.append(runs.everything(run))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("on_nonfinite", "on_loss_spike", "done"),
    [
        ("log", "skip", "skip"),
        ("log", "rollback", "rollback"),
        ("skip", "rollback", "skip"),
        ("raise", "skip", "raise"),
    ],
)
def test_a_nan_is_a_spike_where_nothing_else_is_said_of_it(
    on_nonfinite: str, on_loss_spike: str, done: str, tmp_path: Path
) -> None:
    run = trainer(tmp_path, {40: NAN}, on_loss_spike, on_nonfinite=on_nonfinite)
    if done == "raise":
        with pytest.raises(NonFiniteError):
            run.train()
    else:
        run.train()
    (event,) = runs.events(tmp_path)
    assert (event["action"], event["cause"], event["step"]) == (done, "nonfinite", 11)
    assert event["reports"]


def test_spikes_in_a_row_are_too_many_at_some_point(tmp_path: Path) -> None:
    run = trainer(tmp_path, dict.fromkeys(range(40, 64), FAR), "skip", max_skipped_updates=3)
    with pytest.raises(NonFiniteError, match=r"update 11 has a loss far above.*max_skipped_updates=3"):
        run.train()
    assert [event["action"] for event in runs.events(tmp_path)] == ["skip"] * 3 + ["raise"]


def back(folder: Path, wrong: dict[int, float], **changes: Any) -> tuple[Trainer, Notes]:
    notes = Notes()
    run = trainer(folder, wrong, **{**ROLLBACK, "callbacks": [notes], "logging_steps": 4, **changes})
    notes.trainer = run
    run.train()
    return run, notes


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "fp16": {"fp16": True},
}


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_everything_trained_and_counted_is_what_it_was(options: dict[str, Any], tmp_path: Path) -> None:
    """The spike is met after ten updates: six are the newest multiple of three that lies three back."""
    run, notes = back(tmp_path, {40: FAR}, **options)
    begun = [(step, found) for event, step, found in notes.seen if event == "begin"]
    assert [step for step, _ in begun] == [*range(11), 6, *range(7, 11)]
    before, after = begun[6][1], begun[11][1]
    assert before.pop("random") != after.pop("random")
    assert before == after
    assert (run.state.global_step, run.state.max_steps, run.state.epoch) == (11, 11, 1.0)


def test_one_place_can_be_gone_back_to_twice(tmp_path: Path) -> None:
    """What was trained after the first time has left no trace in it."""
    run, notes = back(tmp_path, {40: FAR, 56: FAR})
    begun = [(step, found) for event, step, found in notes.seen if event == "begin"]
    assert [step for step, _ in begun] == [*range(11), 6, 7, 8, 9, 6]
    once, twice = begun[6][1], begun[15][1]
    assert {**once, "random": 0} == {**twice, "random": 0}
    assert run.state.global_step == 7


def test_the_history_says_from_where_to_where(tmp_path: Path) -> None:
    run, _ = back(tmp_path, {40: FAR})
    (note,) = [log for log in run.state.log_history if "rollback_from" in log]
    assert note == {"rollback_from": 10, "rollback_to": 6, "step": 6, "epoch": 10 / 16}
    steps = [log["step"] for log in run.state.log_history if "loss" in log]
    assert steps == [4, 8, 8]  # the window of the first eight was logged, and is made anew
    (event,) = runs.events(tmp_path)
    assert (event["step"], event["action"], event["back_to"]) == (11, "rollback", 6)


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    run, _ = back(tmp_path, {40: FAR})
    assert run.train_dataset.reads == ORDER


def test_a_number_of_updates_is_made_with_further_data(tmp_path: Path) -> None:
    run, _ = back(tmp_path, {40: FAR}, max_steps=16)
    assert (run.state.global_step, run.state.max_steps) == (16, 16)
    assert len(run.train_dataset.reads) > 64


def test_the_start_is_gone_back_to_where_nothing_lies_further_back(tmp_path: Path) -> None:
    run, _ = back(tmp_path, {28: NAN}, loss_spike_rollback_updates=100)
    assert runs.events(tmp_path)[0]["back_to"] == 0
    assert run.state.global_step == 8  # of sixteen, seven are gone, and the one that was left out


def test_rollbacks_without_getting_further_are_too_many_at_some_point(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, dict.fromkeys(range(40, 64), FAR), "rollback", loss_spike_rollback_updates=3, max_rollbacks=2
    )
    with pytest.raises(NonFiniteError, match="as max_rollbacks=2 were not made already"):
        run.train()
    assert [event["action"] for event in runs.events(tmp_path)] == ["rollback"] * 2 + ["raise"]


def test_rollbacks_after_getting_further_are_counted_anew(tmp_path: Path) -> None:
    """The sample comes again in every epoch."""
    run = trainer(tmp_path, {40: FAR}, "rollback", loss_spike_rollback_updates=2, max_rollbacks=1, num_train_epochs=4)
    run.train()
    assert len(runs.events(tmp_path)) >= 3


class Counts(TrainerCallback):
    """A callback with a tensor: the updates that it has seen, as an average of weights would be made of them."""

    def __init__(self) -> None:
        self.seen = torch.zeros(())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_callbacks_go_back_too(tmp_path: Path) -> None:
    counts = Counts()
    run = trainer(tmp_path, {40: FAR}, callbacks=[counts], **ROLLBACK)
    run.train()
    assert counts.seen == run.state.global_step == 11


def test_averages_of_the_weights_go_back_too(tmp_path: Path) -> None:
    """With a decay close to 0 the average is the newest weights, so long as it follows them."""
    found = {}
    for decay in (1e-9, 0.9):
        run = trainer(tmp_path / str(decay), {40: FAR}, **ROLLBACK, ema_decay=decay)
        run.train()
        (average,) = (callback for callback in run.callback_handler.callbacks if hasattr(callback, "averages"))
        found[decay] = average.averages(), average.updates
        assert average.updates == run.state.global_step == 11
    for name, parameter in run.model.named_parameters():
        assert torch.allclose(found[1e-9][0][name], parameter)


RESUMED: dict[str, dict[str, Any]] = {
    "skip": {"on_loss_spike": "skip"},
    "rollback": ROLLBACK,
    "rollback, updates": {**ROLLBACK, "max_steps": 18},
}


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_a_run_resumed_from_any_checkpoint_is_the_uninterrupted_one(options: dict[str, Any], tmp_path: Path) -> None:
    """Also from those that lie between a snapshot and the spike that goes back to it, and between two spikes."""
    changes = {"logging_steps": 4, "save_strategy": "steps", "save_steps": 1, **options}
    wrong = {40: FAR, 48: FAR}
    whole = trainer(tmp_path / "whole", wrong, **changes)
    whole.train()
    assert len(runs.events(tmp_path / "whole")) >= 2
    end = runs.everything(whole)
    for step in range(1, whole.state.global_step, 2):
        resumed = trainer(tmp_path / str(step), wrong, **changes)
        resumed.train(resume_from_checkpoint=tmp_path / "whole" / f"checkpoint-{step}")
        assert runs.everything(resumed) == end
        assert runs.history(resumed) == runs.history(whole)
        assert resumed.state.max_steps == whole.state.max_steps


@pytest.mark.parametrize("step", [7, 9, 10])
def test_a_checkpoint_of_updates_that_were_gone_back_from_leads_to_the_same_end(step: int, tmp_path: Path) -> None:
    """Killed right after going back, a run finds the checkpoint of an update that is yet to come, and goes back again."""

    class Fails(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if any("rollback_from" in log for log in state.log_history):
                raise RuntimeError("killed")

    changes = {"logging_steps": 4, "save_strategy": "steps", "save_steps": 1, **ROLLBACK}
    whole = trainer(tmp_path / "whole", {40: FAR}, **changes)
    whole.train()
    killed = trainer(tmp_path / "killed", {40: FAR}, callbacks=[Fails()], **changes)
    with pytest.raises(RuntimeError, match="killed"):
        killed.train()
    resumed = trainer(tmp_path / "resumed", {40: FAR}, **changes)
    resumed.train(resume_from_checkpoint=tmp_path / "killed" / f"checkpoint-{step}")
    assert runs.everything(resumed) == runs.everything(whole)
    assert runs.history(resumed) == runs.history(whole)


class Caches(runs.Network):
    """Keeps in buffers what it can compute again: one that grows with each batch, and one that it makes late."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grows", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.grows = torch.zeros(len(self.grows) + 1)
        if len(self.grows) == 8:
            self.register_buffer("late", torch.ones(3), persistent=False)
        return super().forward(x, labels)


def test_buffers_that_grow_or_come_late_do_not_hinder_going_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, {40: FAR}, model=Caches(), **ROLLBACK)
    run.train()
    (event,) = runs.events(tmp_path)
    assert event["action"] == "rollback"
    assert run.state.global_step == 11
    assert len(run.model.grows) == 1 + event["back_to"] + 16 - event["step"]
