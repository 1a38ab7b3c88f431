"""The handler: who is called, with what, and what becomes of the answers."""

from __future__ import annotations

import copy
import pickle
import re
from collections import UserDict
from types import SimpleNamespace

import pytest
import transformers
from transformers import trainer_callback as reference

from mainspring.callbacks import EVENTS, CallbackHandler, DefaultFlowCallback, TrainerCallback, base
from mainspring.state import CONTROL_FLAGS, TrainerControl, TrainerState

ALL = dict.fromkeys(CONTROL_FLAGS, True)
EXTRAS = {"on_log": {"logs": {}}, "on_evaluate": {"metrics": {}}, "on_predict": {"metrics": {}}}


def handler(*callbacks):
    return CallbackHandler([DefaultFlowCallback(), *callbacks], "model", "processing", "optimizer", "scheduler")


def fire(hand, event, control=None):
    control = TrainerControl() if control is None else control
    return getattr(hand, event)(None, TrainerState(), control, **EXTRAS.get(event, {}))


def listeners(hand, event):
    hand.call_event(event, *quiet())
    return [callback for callback, _ in hand._listeners[event]]


def quiet():
    args = SimpleNamespace(
        logging_first_step=False, logging_strategy="no", eval_strategy="no", save_strategy="no", eval_delay=0
    )
    return args, TrainerState(max_steps=10), TrainerControl()


class Recorder(TrainerCallback):
    def __init__(self):
        self.calls = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.calls.append(("on_epoch_begin", kwargs))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.calls.append(("on_log", logs))


class Other(Recorder):
    pass


class MadeForTheReference(reference.TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = True
        return control


class Duck:
    def __init__(self):
        self.calls = 0

    def on_save(self, args, state, control, **kwargs):
        self.calls += 1


# ---------------------------------------------------------------------------------------------------- events


def test_events_are_the_references():
    theirs = {name for name in vars(reference.TrainerCallback) if name.startswith("on_")}
    assert set(EVENTS) == theirs
    assert len(EVENTS) == len(theirs)


def test_every_event_is_in_the_pseudo_code_and_on_both_classes():
    for event in EVENTS:
        assert re.search(rf"\b{event}\b", base.__doc__), event
        assert callable(getattr(TrainerCallback, event))
        assert getattr(CallbackHandler, event).__name__ == event
        assert getattr(CallbackHandler, event).__doc__


@pytest.mark.parametrize("event", EVENTS)
def test_flags_are_taken_back_as_the_reference_does(event):
    ours, theirs = TrainerControl(**ALL), reference.TrainerControl(**ALL)
    hand = CallbackHandler([], None, None, None, None)
    assert fire(hand, event, ours) is ours
    fire(reference.CallbackHandler([], None, None, None, None), event, theirs)
    assert vars(ours) == vars(theirs)


def test_events_get_what_the_reference_gives_and_the_older_name_of_the_tokenizer():
    recorder = Recorder()
    hand = handler(recorder)
    hand.train_dataloader, hand.eval_dataloader = "train", "eval"
    fire(hand, "on_epoch_begin")
    assert recorder.calls == [
        (
            "on_epoch_begin",
            {
                "model": "model",
                "processing_class": "processing",
                "tokenizer": "processing",
                "optimizer": "optimizer",
                "lr_scheduler": "scheduler",
                "train_dataloader": "train",
                "eval_dataloader": "eval",
            },
        )
    ]


def test_what_is_set_on_the_handler_later_is_handed_on():
    recorder = Recorder()
    hand = handler(recorder)
    fire(hand, "on_epoch_begin")
    hand.optimizer, hand.tokenizer = "late", "tok"
    fire(hand, "on_epoch_begin")
    assert recorder.calls[-1][1]["optimizer"] == "late"
    assert recorder.calls[-1][1]["processing_class"] == hand.processing_class == "tok"


def test_logs_are_the_very_dict():
    recorder, logs = Recorder(), {"loss": 1.0}
    handler(recorder).on_log(None, TrainerState(), TrainerControl(), logs)
    assert recorder.calls[0][1] is logs


def test_any_event_name_can_be_called():
    class Own:
        def on_reward(self, args, state, control, reward, **kwargs):
            self.reward = reward

    own = Own()
    handler(own).call_event("on_reward", None, None, TrainerControl(), reward=3)
    assert own.reward == 3


# ---------------------------------------------------------------------------------------------------- who listens


def test_inherited_no_ops_are_absent():
    theirs, duck, recorder = MadeForTheReference(), Duck(), Recorder()
    hand = handler(theirs, duck, recorder)
    assert listeners(hand, "on_save") == [theirs, duck]
    assert listeners(hand, "on_epoch_begin") == [recorder]
    assert listeners(hand, "on_substep_end") == []
    assert listeners(hand, "on_step_end") == [hand.callbacks[0]]


def test_a_method_that_only_calls_its_parent_counts_as_implemented():
    class Calls(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            return super().on_save(args, state, control, **kwargs)

    calls = Calls()
    assert listeners(handler(calls), "on_save") == [calls]


def test_a_users_class_that_is_called_trainer_callback_is_not_taken_for_the_base():
    namesake = type("TrainerCallback", (TrainerCallback,), {"on_save": Duck.on_save, "calls": 0})()
    fire(handler(namesake), "on_save")
    assert namesake.calls == 1


def test_mixed_in_and_inherited_implementations_are_found():
    class Mixed(Duck, TrainerCallback):
        pass

    class Child(MadeForTheReference):
        pass

    mixed, child = Mixed(), Child()
    assert listeners(handler(mixed, child), "on_save") == [mixed, child]


def test_callbacks_of_the_reference_steer_our_control():
    hand, control = handler(MadeForTheReference()), TrainerControl()
    assert fire(hand, "on_save", control) is control
    assert control.should_training_stop


def test_the_references_own_flow_runs_with_our_state():
    hand = CallbackHandler([reference.DefaultFlowCallback], None, None, None, None)
    args, state, control = quiet()
    state.global_step = 10
    assert hand.on_step_end(args, state, control).should_training_stop


def test_handlers_that_name_their_keywords_get_those():
    seen = []

    class Strict(TrainerCallback):
        def on_save(self, args, state, control):
            seen.append(())

        def on_log(self, args, state, control, logs, model=None):
            seen.append((logs, model))

    hand = handler(Strict())
    fire(hand, "on_save")
    fire(hand, "on_log")
    assert seen == [(), ({}, "model")]


@pytest.mark.parametrize(
    "change",
    [
        lambda hand, new: hand.add_callback(new),
        lambda hand, new: hand.callbacks.append(new),
        lambda hand, new: hand.callbacks.extend(iter([new])),
        lambda hand, new: hand.callbacks.insert(0, new),
        lambda hand, new: hand.callbacks.__setitem__(0, new),
        lambda hand, new: hand.callbacks.__setitem__(slice(0, 1), [new]),
        lambda hand, new: hand.callbacks.__iadd__([new]),
        lambda hand, new: setattr(hand, "callbacks", [*hand.callbacks, new]),
    ],
)
def test_a_callback_added_in_any_way_is_called(change):
    new, hand = Recorder(), handler()
    fire(hand, "on_epoch_begin")
    change(hand, new)
    fire(hand, "on_epoch_begin")
    assert len(new.calls) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda hand, old: hand.pop_callback(old),
        lambda hand, old: hand.remove_callback(Recorder),
        lambda hand, old: hand.callbacks.remove(old),
        lambda hand, old: hand.callbacks.pop(),
        lambda hand, old: hand.callbacks.clear(),
        lambda hand, old: hand.callbacks.__delitem__(1),
        lambda hand, old: hand.callbacks.__delitem__(slice(0, 2)),
        lambda hand, old: setattr(hand, "callbacks", []),
    ],
)
def test_a_callback_removed_in_any_way_is_not_called(change):
    old = Recorder()
    hand = handler(old)
    fire(hand, "on_epoch_begin")
    change(hand, old)
    fire(hand, "on_epoch_begin")
    assert len(old.calls) == 1


@pytest.mark.parametrize("change", [lambda found: found.reverse(), lambda found: found.sort(key=id, reverse=True)])
def test_a_new_order_is_followed(change):
    hand = handler(Duck(), Duck(), Duck())
    listeners(hand, "on_save")
    change(hand.callbacks)
    assert listeners(hand, "on_save") == [callback for callback in hand.callbacks if isinstance(callback, Duck)]


def test_an_equal_callback_in_the_place_of_another_is_the_one_called():
    class Equal(Duck):
        __eq__ = lambda self, other: True  # noqa: E731
        __hash__ = None

    old, new = Equal(), Equal()
    hand = handler(old)
    fire(hand, "on_save")
    hand.callbacks[-1] = new
    fire(hand, "on_save")
    assert (old.calls, new.calls) == (1, 1)


def test_a_callback_that_removes_itself_does_not_hide_the_next_one():
    class Once(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            hand.remove_callback(self)

    duck = Duck()
    hand = handler(Once(), duck)
    fire(hand, "on_save")
    fire(hand, "on_save")
    assert duck.calls == 2
    assert "Once" not in hand.callback_list


def test_methods_put_on_an_object_are_found_when_training_begins():
    lazy, seen = TrainerCallback(), []
    hand = handler(lazy)
    fire(hand, "on_save")
    lazy.on_save = lambda args, state, control, **kwargs: seen.append(1)
    fire(hand, "on_train_begin")
    fire(hand, "on_save")
    assert seen == [1]


def test_an_event_nobody_listens_to_calls_nothing():
    hand = handler(Recorder(), MadeForTheReference())
    control = TrainerControl()
    assert fire(hand, "on_substep_end", control) is control
    assert hand._listeners["on_substep_end"] == ()


# ---------------------------------------------------------------------------------------------------- the list


def test_add_pop_and_remove():
    hand = handler()
    hand.add_callback(Recorder)
    other = Other()
    hand.add_callback(other)
    assert hand.callback_list == "DefaultFlowCallback\nRecorder\nOther"
    assert hand.pop_callback(other) is other
    assert isinstance(hand.pop_callback(Recorder), Recorder)
    assert hand.pop_callback(Recorder) is None
    assert hand.pop_callback(other) is None
    hand.remove_callback(Recorder)
    with pytest.raises(ValueError, match="DefaultFlowCallback"):
        hand.remove_callback(other)


def test_a_second_callback_of_a_class_is_added_with_a_warning(caplog):
    hand = handler(Recorder())
    assert not caplog.records
    hand.add_callback(Recorder())
    assert "Recorder already" in caplog.text
    assert len(hand.callbacks) == 3


@pytest.mark.parametrize(("flow", "warns"), [(None, True), (Duck, True), (reference.DefaultFlowCallback, False)])
def test_a_missing_flow_is_warned_of(caplog, flow, warns):
    CallbackHandler([flow] if flow else [], None, None, None, None)
    assert ("DefaultFlowCallback" in caplog.text) == warns


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda hand: pickle.loads(pickle.dumps(hand))])
def test_a_copied_handler_calls_the_copies(clone):
    hand = handler(Duck())
    fire(hand, "on_save")
    other = clone(hand)
    fire(other, "on_save")
    assert (hand.callbacks[1].calls, other.callbacks[1].calls) == (1, 2)
    other.callbacks.append(Duck())
    fire(other, "on_save")
    assert [callback.calls for callback in other.callbacks[1:]] == [3, 1]
    assert len(hand.callbacks) == 2


# ---------------------------------------------------------------------------------------------------- answers


class Answers(TrainerCallback):
    def __init__(self, answer):
        self.answer = answer

    def on_step_begin(self, args, state, control, **kwargs):
        return self.answer


@pytest.mark.parametrize("answer", [None, {}, UserDict()])
def test_nothing_changes_nothing(answer):
    control = TrainerControl(should_epoch_stop=True)
    assert fire(handler(Answers(answer)), "on_step_begin", control) is control
    assert control == TrainerControl(should_epoch_stop=True)


@pytest.mark.parametrize("flag", CONTROL_FLAGS)
def test_a_mapping_sets_its_flags_and_no_other(flag):
    control = TrainerControl()
    assert fire(handler(Answers({flag: True})), "on_step_begin", control) is control
    assert control == TrainerControl(**{flag: True})
    assert fire(handler(Answers({flag: False})), "on_step_begin", control) == TrainerControl()


def test_the_guides_early_stopping_runs_unchanged():
    class EarlyStoppingCallback(transformers.TrainerCallback):
        def __init__(self, num_steps=10):
            self.num_steps = num_steps

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step >= self.num_steps:
                return {"should_training_stop": True}
            else:
                return {}

    hand = handler(EarlyStoppingCallback(num_steps=10))
    args, state, control = quiet()
    state.max_steps = 100
    stopped = []
    for state.global_step in range(1, 12):
        control = hand.on_step_end(args, state, control)
        stopped.append(control.should_training_stop)
    assert stopped == [False] * 9 + [True] * 2


def test_our_control_takes_the_place_of_the_current_one_for_those_who_follow():
    new, seen = TrainerControl(should_log=True), []

    class Follows(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(control)

    assert fire(handler(Answers(new), Follows()), "on_step_begin") is new
    assert seen == [new]


@pytest.mark.parametrize("kind", [reference.TrainerControl, SimpleNamespace])
def test_the_flags_of_a_foreign_control_are_copied(kind):
    foreign = kind(**{**dict.fromkeys(CONTROL_FLAGS, False), "should_save": True})
    control = TrainerControl(should_epoch_stop=True)
    assert fire(handler(Answers(foreign)), "on_step_begin", control) is control
    assert control == TrainerControl(should_save=True)


@pytest.mark.parametrize("answer", [{"should_stop": True}, {"should_save": True, 3: True}])
def test_unknown_flags_are_refused_and_none_is_set(answer):
    control = TrainerControl()
    with pytest.raises(TypeError, match=rf"Answers\.on_step_begin .*{list(answer)[-1]!r}.*should_training_stop"):
        fire(handler(Answers(answer)), "on_step_begin", control)
    assert control == TrainerControl()


@pytest.mark.parametrize("answer", [True, 0, "stop", ["should_save"], object()])
def test_any_other_answer_is_refused(answer):
    with pytest.raises(TypeError, match=rf"Answers\.on_step_begin returned .*{type(answer).__name__}"):
        fire(handler(Answers(answer)), "on_step_begin")


def test_abandon_reaches_our_callbacks_alone():
    class Screen(TrainerCallback):
        open = True

        def _abandon(self):
            self.open = False

    screen = Screen()
    handler(screen, Duck(), MadeForTheReference()).abandon()
    assert not screen.open
