"""Early stopping: the same decisions as the reference's, and errors that name the option."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from transformers import trainer_callback as reference

from mainspring.callbacks import EarlyStoppingCallback
from mainspring.state import TrainerControl, TrainerState, restore_callbacks


def arguments(**changes):
    given = {
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "eval_strategy": "steps",
        "load_best_model_at_end": True,
    }
    return SimpleNamespace(**{**given, **changes})


def run(callback, state, control, args, series):
    """Evaluate the series, keeping the best as a Trainer does: after the callback has looked."""
    trace = []
    for value in series:
        callback.on_evaluate(args, state, control, metrics={} if value is None else {"eval_loss": value})
        trace.append((callback.early_stopping_patience_counter, control.should_training_stop))
        best = state.best_metric
        if value is not None and (best is None or (value > best if args.greater_is_better else value < best)):
            state.best_metric = value
    return trace


@pytest.mark.parametrize("greater_is_better", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize(
    "series",
    [
        [3.0, 2.0, 1.0, 0.5],
        [1.0, 1.0, 1.0, 1.0],
        [1.0, 1.05, 0.95, 1.2, 0.9, 0.2],
        [1.0, None, 2.0, None, 3.0],
        [math.nan, 1.0, math.nan, 0.5],
        [1, 2, 3, 2, 1],
    ],
)
def test_decisions_equal_the_references(series, patience, threshold, greater_is_better):
    args = arguments(greater_is_better=greater_is_better)
    ours = EarlyStoppingCallback(patience, threshold)
    theirs = reference.EarlyStoppingCallback(patience, threshold)
    expected = run(theirs, reference.TrainerState(), reference.TrainerControl(), args, series)
    assert run(ours, TrainerState(), TrainerControl(), args, series) == expected
    assert ours.state() == theirs.state()


@pytest.mark.parametrize("name", ["accuracy", "eval_accuracy"])
def test_the_prefix_of_the_metric_may_be_left_out(name):
    callback, control = EarlyStoppingCallback(), TrainerControl()
    state = TrainerState(best_metric=0.9)
    args = arguments(metric_for_best_model=name, greater_is_better=True)
    callback.on_evaluate(args, state, control, metrics={"eval_accuracy": 0.8})
    assert control.should_training_stop


def test_an_evaluation_without_the_metric_is_named_and_does_not_count(caplog):
    callback, control = EarlyStoppingCallback(), TrainerControl()
    callback.on_evaluate(arguments(), TrainerState(best_metric=0.0), control, metrics={"eval_other_loss": 1.0})
    assert "eval_loss" in caplog.text
    assert (callback.early_stopping_patience_counter, control.should_training_stop) == (0, False)


def test_no_threshold_is_zero():
    callback = EarlyStoppingCallback(1, None)
    assert run(callback, TrainerState(), TrainerControl(), arguments(), [1.0, 0.9]) == [(0, False), (0, False)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_for_best_model": None}, "^metric_for_best_model=None: EarlyStoppingCallback"),
        ({"eval_strategy": "no"}, "^eval_strategy='no': .*'steps' or 'epoch'"),
        ({"metric_for_best_model": None, "eval_strategy": "no"}, "(?s)metric_for_best_model.*\n.*eval_strategy"),
    ],
)
def test_what_it_needs_is_asked_for_at_the_start(changes, message):
    with pytest.raises(ValueError, match=message):
        EarlyStoppingCallback().on_train_begin(arguments(**changes), TrainerState(), TrainerControl())


@pytest.mark.parametrize("load_best", [True, False])
def test_ending_with_the_last_weights_is_warned_of(caplog, load_best):
    EarlyStoppingCallback().on_train_begin(
        arguments(load_best_model_at_end=load_best), TrainerState(), TrainerControl()
    )
    assert ("load_best_model_at_end" in caplog.text) != load_best


def test_its_counter_survives_a_checkpoint(tmp_path):
    before = EarlyStoppingCallback(3, 0.5)
    before.early_stopping_patience_counter = 2
    state = TrainerState()
    state.collect([before, TrainerControl()])
    state.save_to_json(tmp_path / "state.json")
    stored = TrainerState.load_from_json(tmp_path / "state.json").stateful_callbacks
    after = EarlyStoppingCallback()
    assert restore_callbacks([after], TrainerControl(), stored) == []
    assert vars(after) == vars(before)
