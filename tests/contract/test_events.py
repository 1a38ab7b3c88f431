"""Callback events: their order, what the state and the control say at each, and what a handler may answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contract.events import SETTINGS, Setting, events_of, recorder
from tests.helpers import data, models
from tests.helpers.sides import REFERENCE, SUBJECT

pytestmark = pytest.mark.parity

GOLDEN = """
on_init_end            0 0.000000 -
on_train_begin         0 0.000000 -
on_epoch_begin         0 0.000000 -
on_step_begin          0 0.000000 -
on_substep_end         0 0.000000 -
on_pre_optimizer_step  0 0.000000 -
on_optimizer_step      0 0.000000 -
on_step_end            1 0.666667 l
on_log                 1 0.666667 -
on_step_begin          1 0.666667 -
on_pre_optimizer_step  1 0.666667 -
on_optimizer_step      1 0.666667 -
on_step_end            2 1.000000 sl
on_log                 2 1.000000 s
on_save                2 1.000000 -
on_epoch_end           2 1.000000 e
on_prediction_step     2 1.000000 e
on_prediction_step     2 1.000000 e
on_log                 2 1.000000 e
on_evaluate            2 1.000000 -
on_epoch_begin         2 1.000000 -
on_step_begin          2 1.000000 -
on_substep_end         2 1.000000 -
on_pre_optimizer_step  2 1.000000 -
on_optimizer_step      2 1.000000 -
on_step_end            3 1.666667 l
on_log                 3 1.666667 -
on_step_begin          3 1.666667 -
on_pre_optimizer_step  3 1.666667 -
on_optimizer_step      3 1.666667 -
on_step_end            4 2.000000 tsl
on_log                 4 2.000000 ts
on_save                4 2.000000 t
on_epoch_end           4 2.000000 te
on_prediction_step     4 2.000000 te
on_prediction_step     4 2.000000 te
on_log                 4 2.000000 te
on_evaluate            4 2.000000 t
on_log                 4 2.000000 t
on_train_end           4 2.000000 t
"""
"""Two epochs of three batches, two per update; evaluation by epoch, saving every second update. Flags: (t)raining stop,
(e)valuate, (s)ave, (l)og."""


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_events_equal_the_references(setting: Setting, tmp_path: Path) -> None:
    """The same names, steps, epochs, flags and keyword arguments in the same order."""
    expected = events_of(REFERENCE, setting, tmp_path / "reference")
    actual = events_of(SUBJECT, setting, tmp_path / "subject")
    assert [event[:4] for event in actual] == [event[:4] for event in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert set(ours[4]) - {"tokenizer"} == set(theirs[4]), (
            "a handler gets other keyword arguments (4.37: tokenizer)"
        )


def test_golden_trace(tmp_path: Path) -> None:
    """The order written out, so that a change of it is a change of this file."""
    options = {
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "save_strategy": "steps",
        "save_steps": 2,
    }
    events = events_of(SUBJECT, Setting("golden", options, task=_six_and_eight()), tmp_path)
    lines = [f"{name:<22} {step} {epoch:.6f} {flags or '-'}" for name, step, epoch, flags, _ in events]
    assert lines == GOLDEN.strip().splitlines()


def _six_and_eight() -> Any:
    from tests.parity.tasks import regression

    return regression(samples=10, eval_dataset=data.Items(data.points(8, 99)))


def _trainer(tmp_path: Path, callbacks: list[Any], **options: Any) -> Any:
    return SUBJECT.api.Trainer(
        model=models.Regressor(),
        args=SUBJECT.arguments(tmp_path, **{"max_steps": 12, **options}),
        train_dataset=data.Items(data.points(22)),
        eval_dataset=data.Items(data.points(6)),
        callbacks=callbacks,
    )


def test_order_of_callbacks_equals_the_references(tmp_path: Path) -> None:
    """Policy first, then the user's in their order, then the display: a user's handler sees the policy's flags."""

    def names(side: Any) -> list[str]:
        trainer = side.api.Trainer(
            model=models.Regressor(), args=side.arguments(tmp_path), callbacks=[recorder(side, [])]
        )
        return [type(callback).__name__ for callback in trainer.callback_handler.callbacks]

    assert names(SUBJECT) == names(REFERENCE)


def test_handlers_see_the_objects_of_the_run(tmp_path: Path) -> None:
    """What a handler is given are the Trainer's own model, optimizer, schedule and loaders, by identity."""
    seen: dict[str, Any] = {}
    base: Any = SUBJECT.api.TrainerCallback

    class Look(base):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.update(kwargs, args=args, state=state, control=control)

    trainer = _trainer(tmp_path, [Look], max_steps=1)
    trainer.train()
    assert seen["args"] is trainer.args
    assert seen["state"] is trainer.state
    assert seen["control"] is trainer.control
    assert seen["model"] is trainer.model
    assert seen["optimizer"] is trainer.optimizer
    assert seen["lr_scheduler"] is trainer.lr_scheduler
    assert seen["train_dataloader"] is trainer.callback_handler.train_dataloader
    assert len(list(seen["train_dataloader"])) == 6


own_behaviour = pytest.mark.skipif(
    SUBJECT.is_reference, reason="the reference breaks here, so this promise is Mainspring's own"
)


@own_behaviour
@pytest.mark.parametrize(
    "answer", [{"should_training_stop": True}, {"should_training_stop": True, "should_save": False}]
)
def test_a_mapping_of_flags_is_an_answer(tmp_path: Path, answer: dict[str, bool]) -> None:
    """The documented example returns a mapping: the run stops where it says."""

    class EarlyStoppingCallback(SUBJECT.api.TrainerCallback):  # type: ignore[misc,name-defined]
        def __init__(self, num_steps: int = 10) -> None:
            self.num_steps = num_steps

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> dict[str, bool]:
            return answer if state.global_step >= self.num_steps else {}

    trainer = _trainer(tmp_path, [EarlyStoppingCallback(num_steps=10)])
    assert trainer.train().global_step == 10


@own_behaviour
def test_an_unknown_flag_names_callback_and_key(tmp_path: Path) -> None:
    """A typing mistake in a flag is an error that says whose it is."""

    class Misspelt(SUBJECT.api.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> dict[str, bool]:
            return {"should_stop": True}

    with pytest.raises(TypeError, match=r"(?s)(?=.*Misspelt)(?=.*should_stop)"):
        _trainer(tmp_path, [Misspelt]).train()


def test_callbacks_added_and_removed_during_training_count_at_once(tmp_path: Path) -> None:
    """A callback that leaves hears nothing more; one that comes hears the next event."""
    first: list[Any] = []
    second: list[Any] = []
    leaving, coming = recorder(SUBJECT, first), recorder(SUBJECT, second)
    base: Any = SUBJECT.api.TrainerCallback

    class Swap(base):  # type: ignore[misc]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step:
                trainer.remove_callback(leaving)
                trainer.add_callback(coming)

    trainer = _trainer(tmp_path, [leaving, Swap()], max_steps=7)
    trainer.train()
    assert [event[1] for event in first if event[0] == "on_step_end"] == [1, 2, 3, 4, 5, 6]
    assert [event[1] for event in second if event[0] == "on_step_end"] == [7]


def test_pop_callback_gives_it_back_or_nothing(tmp_path: Path) -> None:
    """By class or by instance; an absent one gives None."""
    callback = recorder(SUBJECT, [])
    trainer = _trainer(tmp_path, [callback])
    assert trainer.pop_callback(callback) is callback
    assert trainer.pop_callback(type(callback)) is None
    trainer.add_callback(type(callback))
    assert isinstance(trainer.pop_callback(type(callback)), type(callback))
