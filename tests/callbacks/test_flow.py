"""The flow policy: ours and the reference's, event by event on the same states."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from transformers import trainer_callback as reference

from mainspring.callbacks import DefaultFlowCallback
from mainspring.state import TrainerControl, TrainerState

STRATEGIES = ("no", "steps", "epoch")


def flags_after(event, args, epoch, step, max_steps, every):
    results = []
    for module, flow in ((reference, reference.DefaultFlowCallback), (None, DefaultFlowCallback)):
        state_class = module.TrainerState if module else TrainerState
        control = (module.TrainerControl if module else TrainerControl)()
        logging_steps, eval_steps, save_steps = every
        state = state_class(
            epoch=epoch,
            global_step=step,
            max_steps=max_steps,
            logging_steps=logging_steps,
            eval_steps=eval_steps,
            save_steps=save_steps,
        )
        assert getattr(flow(), event)(args, state, control) is control
        results.append(vars(control))
    return results


@pytest.mark.parametrize("logging_strategy", STRATEGIES)
@pytest.mark.parametrize("eval_strategy", STRATEGIES)
@pytest.mark.parametrize("save_strategy", [*STRATEGIES, "best"])
def test_flow_equals_the_references(logging_strategy, eval_strategy, save_strategy):
    for first, delay in itertools.product((False, True), (0, 1, 2.5, 6)):
        args = SimpleNamespace(
            logging_strategy=logging_strategy,
            eval_strategy=eval_strategy,
            save_strategy=save_strategy,
            logging_first_step=first,
            eval_delay=delay,
        )
        for every, step in itertools.product(((1, 2, 3), (3, 3, 3), (500, 4, 7), (2, 5, 0)), range(1, 10)):
            theirs, ours = flags_after("on_step_end", args, step / 4, step, 7, every)
            assert ours == theirs, (first, delay, every, step)
        for epoch in (0.5, 1, 2, 2.5, 3):
            theirs, ours = flags_after("on_epoch_end", args, epoch, 4, 7, (1, 1, 1))
            assert ours == theirs, (first, delay, epoch)


def test_the_end_can_bring_nothing_of_its_own():
    args = SimpleNamespace(
        logging_strategy="no", eval_strategy="steps", save_strategy="steps", logging_first_step=False, eval_delay=0
    )
    state = TrainerState(global_step=7, max_steps=7, eval_steps=3, save_steps=3)
    stop = TrainerControl(should_training_stop=True)
    assert DefaultFlowCallback(final_events=False).on_step_end(args, state, TrainerControl()) == stop
    state.eval_steps = state.save_steps = 7
    due = TrainerControl(should_training_stop=True, should_evaluate=True, should_save=True)
    assert DefaultFlowCallback(final_events=False).on_step_end(args, state, TrainerControl()) == due


def test_flags_that_others_set_are_kept():
    args = SimpleNamespace(
        logging_strategy="no", eval_strategy="no", save_strategy="no", logging_first_step=False, eval_delay=0
    )
    control = TrainerControl(should_log=True, should_epoch_stop=True)
    DefaultFlowCallback().on_step_end(args, TrainerState(global_step=3, max_steps=9), control)
    DefaultFlowCallback().on_epoch_end(args, TrainerState(global_step=3, max_steps=9), control)
    assert control == TrainerControl(should_log=True, should_epoch_stop=True)


def test_changes_during_the_run_are_followed():
    flow = DefaultFlowCallback()
    args = SimpleNamespace(
        logging_strategy="steps", eval_strategy="no", save_strategy="no", logging_first_step=False, eval_delay=0
    )
    state = TrainerState(global_step=6, max_steps=9, logging_steps=4)
    assert not flow.on_step_end(args, state, TrainerControl()).should_log
    state.logging_steps = 3
    assert flow.on_step_end(args, state, TrainerControl()).should_log
    args.logging_strategy = "no"
    assert not flow.on_step_end(args, state, TrainerControl()).should_log
    state.max_steps = 6
    assert flow.on_step_end(args, state, TrainerControl()).should_training_stop


@pytest.mark.parametrize("kind", ["logging", "eval", "save"])
def test_an_interval_of_zero_never_comes(kind):
    args = SimpleNamespace(
        logging_strategy="steps", eval_strategy="steps", save_strategy="steps", logging_first_step=False, eval_delay=0
    )
    state = TrainerState(global_step=3, max_steps=9, logging_steps=1, eval_steps=1, save_steps=1)
    setattr(state, f"{kind}_steps", 0)
    control = DefaultFlowCallback().on_step_end(args, state, TrainerControl())
    flags = {"logging": control.should_log, "eval": control.should_evaluate, "save": control.should_save}
    assert flags == {name: name != kind for name in flags}
