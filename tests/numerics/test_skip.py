"""`on_nonfinite="skip"`: an update that is left out leaves no trace but in the data and the random numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainerCallback
from mainspring.errors import NonFiniteError, OptionError
from tests.numerics import runs

NAN = float("nan")
WRONG = {runs.ORDER[5]: NAN}
"""In the second update of the first epoch, and in some update of the second."""


class Notes(TrainerCallback):
    """Notes what is there when an update begins and ends."""

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self.seen: list[tuple[str, int, dict[str, Any]]] = []

    def _note(self, event: str, step: int) -> None:
        assert self.trainer is not None
        found = runs.everything(self.trainer) | {"window": self.trainer._window.total.item()}
        self.seen.append((event, step, found))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("begin", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("end", state.global_step)


def noted(folder: Path, train: Any, **changes: Any) -> tuple[Trainer, Notes]:
    notes = Notes()
    run = runs.trainer(folder, train, callbacks=[notes], on_nonfinite="skip", logging_steps=100, **changes)
    notes.trainer = run
    run.train()
    return run, notes


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "accumulation": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "without clipping": {"max_grad_norm": 0.0},
}


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_weights_optimizer_schedule_buffers_and_window_are_as_before(options: dict[str, Any], tmp_path: Path) -> None:
    run, notes = noted(tmp_path, runs.rows(wrong=WRONG), **options)
    found = [(event, step) for event, step, _ in notes.seen]
    assert found[:5] == [("begin", 0), ("end", 1), ("begin", 1), ("begin", 1), ("end", 2)]
    before, after = notes.seen[2][2], notes.seen[3][2]
    random = before.pop("random"), after.pop("random")
    assert before == after
    assert random[0] != random[1]  # dropout drew its numbers
    assert all(torch.isfinite(tensor).all() for tensor in run.model.state_dict().values())
    assert run.model.norm.num_batches_tracked == run.state.global_step * (
        2 if options.get("gradient_accumulation_steps") else 1
    )


def test_an_infinite_gradient_of_a_finite_loss_is_left_out(tmp_path: Path) -> None:
    class Breaks(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if self._progress.batches == 2:
                self.model.last.weight.grad[0, 0] = float("inf")
            return loss

    run = runs.trainer(tmp_path, runs.rows(), kind=Breaks, on_nonfinite="skip", num_train_epochs=1)
    run.train()
    assert run.state.global_step == 3
    (event,) = runs.events(tmp_path)
    assert (event["step"], event["grad_norm"]) == (3, "inf")
    assert isinstance(event["loss"], float)


def test_epochs_have_fewer_updates_and_the_last_one_is_still_the_last(tmp_path: Path) -> None:
    """The one left out is the very last: the one before is logged, evaluated and saved as the last one."""
    events: list[str] = []

    class Tells(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.append(f"evaluate {state.global_step}")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.append(f"save {state.global_step}")

    run = runs.trainer(
        tmp_path,
        runs.rows(wrong={runs.ORDER[13]: NAN}),
        callbacks=[Tells()],
        on_nonfinite="skip",
        num_train_epochs=1,
        logging_steps=2,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="no",
    )
    run.eval_dataset = runs.rows(4)
    run.args.eval_strategy, run.state.eval_steps, run.args.eval_steps = "steps", 2, 2
    run.train()
    assert (run.state.global_step, run.state.max_steps, run.state.epoch) == (3, 3, 1.0)
    assert events == ["evaluate 2", "save 2", "evaluate 3", "save 3"]


def test_nothing_is_evaluated_or_saved_twice(tmp_path: Path) -> None:
    """Update 3 was due by itself, and turns out to be the last one afterwards."""
    saves: list[int] = []

    class Tells(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            saves.append(state.global_step)

    train = runs.rows(wrong={runs.ORDER[13]: NAN})
    options = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 3}
    runs.trainer(tmp_path, train, callbacks=[Tells()], on_nonfinite="skip", **options).train()
    assert saves == [3]


def test_a_number_of_updates_is_made_up_for_by_further_epochs(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, runs.rows(wrong=WRONG), on_nonfinite="skip", max_steps=8)
    run.train()
    assert (run.state.global_step, run.state.max_steps) == (8, 8)
    assert len(runs.events(tmp_path)) >= 2
    assert run.state.epoch > 2


def test_one_line_says_which_samples_and_what_was_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run = runs.trainer(
            tmp_path,
            runs.rows(wrong=WRONG),
            on_nonfinite="skip",
            num_train_epochs=1,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        )
        run.train()
    (event,) = runs.events(tmp_path)
    first, second = event.pop("losses")[0]
    assert first == event.pop("loss") == "nan"
    assert second > 0
    assert "labels" in event.pop("reports")[0]
    assert event == {
        "step": 2,
        "epoch": 0,
        "batches": [2, 3],
        "indices": [[runs.ORDER[4:6], runs.ORDER[6:8]]],
        "grad_norm": "nan",
        "cause": "nonfinite",
        "action": "skip",
    }
    assert "update 2 is not finite" in caplog.text
    assert "it is left out" in caplog.text


def test_the_samples_named_are_those_that_were_read(tmp_path: Path) -> None:
    train = runs.rows(wrong=WRONG)
    run = runs.trainer(tmp_path, train, on_nonfinite="skip")
    run.train()
    for event in runs.events(tmp_path):
        place = 16 * event["epoch"] + 4 * event["batches"][0]
        assert event["indices"] == [[train.reads[place : place + 4]]]


def test_a_stream_has_no_indices(tmp_path: Path) -> None:
    from tests.helpers import data

    stream = data.Stream(runs.rows(wrong=WRONG).items)
    run = runs.trainer(tmp_path, stream, on_nonfinite="skip", max_steps=4)
    run.train()
    assert runs.events(tmp_path)[0]["indices"] == [None]
    assert runs.events(tmp_path)[0]["batches"] == [runs.ORDER[5] // 4]


@pytest.mark.parametrize("options", [{}, {"max_steps": 9}], ids=["epochs", "updates"])
def test_a_run_resumed_from_any_checkpoint_is_the_uninterrupted_one(options: dict[str, Any], tmp_path: Path) -> None:
    changes = {"on_nonfinite": "skip", "save_strategy": "steps", "save_steps": 1, "logging_steps": 3, **options}
    whole = runs.trainer(tmp_path / "whole", runs.rows(wrong=WRONG), **changes)
    whole.train()
    end, steps = runs.everything(whole), whole.state.global_step
    assert steps == (6 if not options else 9)
    for step in range(1, steps):
        resumed = runs.trainer(tmp_path / str(step), runs.rows(wrong=WRONG), **changes)
        resumed.train(resume_from_checkpoint=tmp_path / "whole" / f"checkpoint-{step}")
        assert runs.everything(resumed) == end
        assert runs.history(resumed) == runs.history(whole)
        assert (resumed.state.max_steps, resumed.state.epoch) == (whole.state.max_steps, whole.state.epoch)


def test_a_checkpoint_between_updates_left_out_remembers_how_many_these_were(tmp_path: Path) -> None:
    """Stopped after the second of four in a row: the third and the fourth are too many, as without the stop."""
    wrong = dict.fromkeys(runs.ORDER[4:16:4], NAN)

    class Fails(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.begun = getattr(self, "begun", 0) + 1
            if self.begun == 4:
                raise RuntimeError("stopped")

    options = {"on_nonfinite": "skip", "max_skipped_updates": 2, "save_on_exception": True}
    broken = runs.trainer(tmp_path, runs.rows(wrong=wrong), callbacks=[Fails()], **options)
    with pytest.raises(RuntimeError, match="stopped"):
        broken.train()
    resumed = runs.trainer(tmp_path, runs.rows(wrong=wrong), **options)
    with pytest.raises(NonFiniteError, match=r"update 2 is not finite.*as max_skipped_updates=2 were not made already"):
        resumed.train(resume_from_checkpoint=True)
    assert [event["batches"] for event in runs.events(tmp_path)] == [[1], [2], [3]]


def test_a_few_in_a_row_are_borne_when_others_come_between(tmp_path: Path) -> None:
    wrong = {runs.ORDER[4]: NAN, runs.ORDER[12]: NAN}
    options = {"on_nonfinite": "skip", "num_train_epochs": 1}
    run = runs.trainer(tmp_path, runs.rows(wrong=wrong), max_skipped_updates=1, **options)
    run.train()
    assert run.state.global_step == 2


def test_nothing_left_to_train_on_ends_the_run(tmp_path: Path) -> None:
    wrong = dict.fromkeys(range(16), NAN)
    run = runs.trainer(tmp_path, runs.rows(wrong=wrong), on_nonfinite="skip", num_train_epochs=1)
    run.train()
    assert (run.state.global_step, run.state.max_steps) == (0, 0)
    assert len(runs.events(tmp_path)) == 4


def test_schedule_free_weights_are_as_before(tmp_path: Path) -> None:
    pytest.importorskip("schedulefree")
    changes = {"optim": "schedule_free_sgd", "lr_scheduler_type": "constant"}
    run, notes = noted(tmp_path, runs.rows(wrong=WRONG), num_train_epochs=1, **changes)
    before, after = notes.seen[2][2], notes.seen[3][2]
    assert {**before, "random": 0} == {**after, "random": 0}
    assert run.state.global_step == 3


@pytest.mark.parametrize("option", [{"on_nonfinite": "skip"}, {"on_nonfinite": "raise"}, {"on_loss_spike": "skip"}])
def test_an_optimizer_in_the_backward_pass_is_refused(option: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="when the gradients are known, the weights are changed"):
        runs.trainer(tmp_path, runs.rows(), optimizer_in_backward=True, max_grad_norm=0.0, **option)


def test_a_file_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "nonfinite.jsonl").mkdir()
    run = runs.trainer(tmp_path, runs.rows(wrong=WRONG), on_nonfinite="skip", num_train_epochs=1)
    run.train()
    assert run.state.global_step == 3
    assert "nonfinite.jsonl could not be written" in caplog.text


def test_a_report_that_fails_does_not_hide_what_it_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mainspring.diagnostics import divergence

    def fails(*args: Any, **kwargs: Any) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(divergence, "explain", fails)
    run = runs.trainer(tmp_path, runs.rows(wrong=WRONG), on_nonfinite="skip", num_train_epochs=1)
    run.train()
    assert runs.events(tmp_path)[0]["reports"] == ["where it came from could not be found: KeyError: 'broken'"]


def test_the_report_leaves_the_run_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mainspring.diagnostics import divergence

    found = []
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(divergence, "explain", lambda *args, **kwargs: divergence.Divergence.not_found())
        run = runs.trainer(tmp_path / name, runs.rows(wrong=WRONG), on_nonfinite="skip")
        run.train()
        found.append(runs.everything(run))
    assert found[0] == found[1]
