"""What is shown, on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest
from transformers import trainer_callback as reference

from mainspring.callbacks import CallbackHandler, DefaultFlowCallback, PrinterCallback, ProgressCallback
from mainspring.state import TrainerControl, TrainerState

LOGS = {"loss": 1.23456789, "learning_rate": 1e-05, "epoch": 1, "total_flos": 1e12, "note": "n", "none": None}
SHOWN = {"loss": "1.235", "learning_rate": "1e-05", "epoch": 1, "note": "n", "none": None}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(monkeypatch):
    """Called inside the test: between its phases pytest puts its own stream back."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def run(callback, state, *, steps=4, logs=LOGS):
    args, control = SimpleNamespace(), TrainerControl()
    callback.on_train_begin(args, state, control)
    for step in range(state.global_step + 1, steps + 1):
        state.global_step = step
        callback.on_step_end(args, state, control)
        callback.on_log(args, state, control, logs=dict(logs))
    callback.on_train_end(args, state, control)


def test_elsewhere_each_log_is_a_plain_line_with_the_position_after_it(capsys):
    run(ProgressCallback(), TrainerState(max_steps=4))
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(SHOWN)] * 4
    assert [f"{n}/4" in line for n, line in enumerate(err.splitlines(), 1)] == [True] * 4
    assert "\r" not in out + err
    assert "\x1b" not in out + err


def test_on_a_terminal_a_bar_moves_to_its_end(capsys, monkeypatch):
    terminal = on_terminal(monkeypatch)
    run(ProgressCallback(), TrainerState(max_steps=4))
    assert "\r" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")
    assert str(SHOWN) in capsys.readouterr().out


def test_lines_equal_the_references(capsys):
    run(ProgressCallback(), TrainerState(max_steps=4))
    ours = capsys.readouterr().out
    run(reference.ProgressCallback(), TrainerState(max_steps=4))
    assert capsys.readouterr().out == ours


def test_a_resumed_run_begins_where_it_stands(capsys):
    run(ProgressCallback(), TrainerState(max_steps=10, global_step=8), steps=10)
    assert [line for line in capsys.readouterr().err.splitlines() if "9/10" in line or "10/10" in line][1:]


@pytest.mark.parametrize(("limit", "hidden"), [(3, True), (100, False)])
def test_long_texts_are_not_shown(capsys, limit, hidden):
    run(ProgressCallback(max_str_len=limit), TrainerState(max_steps=1), steps=1, logs={"text": "abcdef"})
    assert ("abcdef" not in capsys.readouterr().out) == hidden


def test_logs_are_left_as_they_are(capsys):
    for callback in (PrinterCallback(), ProgressCallback()):
        logs = dict(LOGS)
        callback.on_train_begin(None, TrainerState(max_steps=1), TrainerControl())
        callback.on_log(None, TrainerState(), TrainerControl(), logs=logs)
        callback.on_train_end(None, TrainerState(), TrainerControl())
        assert logs == LOGS
    assert capsys.readouterr().out == f"{SHOWN}\n" * 2


def test_the_printer_prints_what_the_references_does(capsys):
    PrinterCallback().on_log(None, TrainerState(), TrainerControl(), logs=dict(LOGS))
    ours = capsys.readouterr().out
    reference.PrinterCallback().on_log(None, TrainerState(), TrainerControl(), logs=dict(LOGS))
    assert capsys.readouterr().out == ours == f"{SHOWN}\n"


def test_other_processes_show_nothing(capsys, monkeypatch):
    terminal = on_terminal(monkeypatch)
    quiet = TrainerState(max_steps=4, is_world_process_zero=False, is_local_process_zero=False)
    for callback in (ProgressCallback(), PrinterCallback()):
        run(callback, quiet)
        quiet.global_step = 0
    callback = ProgressCallback()
    callback.on_prediction_step(None, quiet, TrainerControl(), eval_dataloader=[1])
    callback.on_evaluate(None, quiet, TrainerControl())
    assert capsys.readouterr().out == terminal.getvalue() == ""


@pytest.mark.parametrize("close", ["on_evaluate", "on_predict"])
def test_an_evaluation_has_a_bar_of_its_batches(monkeypatch, close):
    terminal = on_terminal(monkeypatch)
    callback, state, control = ProgressCallback(), TrainerState(), TrainerControl()
    for _ in range(3):
        callback.on_prediction_step(None, state, control, eval_dataloader=[1, 2, 3])
    assert callback.prediction_bar.total == callback.prediction_bar.n == 3
    getattr(callback, close)(None, state, control, metrics={})
    assert callback.prediction_bar is None
    assert "3/3" in terminal.getvalue()


def test_a_nested_evaluation_leaves_the_bar_of_the_training(monkeypatch):
    on_terminal(monkeypatch)
    callback, state, control = ProgressCallback(), TrainerState(max_steps=4), TrainerControl()
    callback.on_train_begin(None, state, control)
    bar = callback.training_bar
    callback.on_prediction_step(None, state, control, eval_dataloader=[1, 2])
    assert not callback.prediction_bar.leave
    callback.on_evaluate(None, state, control)
    assert callback.training_bar is bar
    assert not bar.disable
    callback.on_train_end(None, state, control)


def test_data_without_length_is_counted(monkeypatch):
    on_terminal(monkeypatch)
    callback, state = ProgressCallback(), TrainerState()
    for loader in (iter([1]), None):
        callback.on_prediction_step(None, state, TrainerControl(), eval_dataloader=loader)
        assert (callback.prediction_bar.total, callback.prediction_bar.n) == (None, 1)
        callback.on_evaluate(None, state, TrainerControl())


def test_the_end_without_a_beginning_is_no_error():
    ProgressCallback().on_train_end(None, TrainerState(), TrainerControl())
    ProgressCallback().on_log(None, TrainerState(), TrainerControl(), logs=LOGS)
    ProgressCallback().on_step_end(None, TrainerState(), TrainerControl())
    ProgressCallback().on_evaluate(None, TrainerState(), TrainerControl())


def test_an_exception_leaves_no_bar_behind(monkeypatch):
    on_terminal(monkeypatch)
    callback, state, control = ProgressCallback(), TrainerState(max_steps=4), TrainerControl()
    hand = CallbackHandler([DefaultFlowCallback, callback], None, None, None, None)
    hand.on_train_begin(None, state, control)
    callback.on_prediction_step(None, state, control, eval_dataloader=[1, 2])
    bars = callback.training_bar, callback.prediction_bar
    hand.abandon()
    assert (callback.training_bar, callback.prediction_bar) == (None, None)
    assert all(bar.disable for bar in bars)  # what tqdm sets when a bar is closed


def test_a_new_run_closes_the_bar_of_a_run_that_broke(monkeypatch):
    on_terminal(monkeypatch)
    callback, state, control = ProgressCallback(), TrainerState(max_steps=4), TrainerControl()
    callback.on_train_begin(None, state, control)
    broken = callback.training_bar
    run(callback, state)
    assert broken.disable


def test_without_standard_error_the_run_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    run(ProgressCallback(), TrainerState(max_steps=1), steps=1)
    assert str(SHOWN) in capsys.readouterr().out
