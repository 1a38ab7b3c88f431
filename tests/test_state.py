"""Plan, state, control and position; where the reference has the same thing, it is run beside."""

from __future__ import annotations

import itertools
import json
import math
import sys
from types import SimpleNamespace

import pytest
import transformers
from torch.utils.data import DataLoader, IterableDataset
from transformers import trainer_callback as reference

from mainspring.errors import CheckpointError
from mainspring.state import (
    ExportableState,
    Progress,
    TrainerControl,
    TrainerState,
    plan_training,
    restore_callbacks,
)


class Counter(ExportableState):
    def __init__(self, start=0):
        self.start, self.seen = start, 0

    def state(self):
        return {"args": {"start": self.start}, "attributes": {"seen": self.seen}}


class ReferenceCounter(reference.TrainerCallback, reference.ExportableState):
    state = Counter.state
    __init__ = Counter.__init__


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(100))


# ---------------------------------------------------------------------------------------------------- the plan


@pytest.fixture(scope="module")
def reference_plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    trainer = transformers.Trainer(
        model=transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=8)),
        args=transformers.TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True),
    )

    def plan(loader, *, batch, group, epochs, max_steps):
        trainer.args.per_device_train_batch_size = batch
        trainer._train_batch_size = batch
        trainer.args.gradient_accumulation_steps = group
        trainer.args.num_train_epochs = epochs
        trainer.args.max_steps = max_steps
        return trainer.set_initial_training_values(trainer.args, loader), trainer.get_total_train_batch_size(
            trainer.args
        )

    return plan


def values(plan):
    return (
        plan.num_train_epochs,
        plan.num_update_steps_per_epoch,
        plan.num_examples,
        plan.num_train_samples,
        plan.total_train_batch_size,
        plan.steps_in_epoch,
        plan.max_steps,
    )


@pytest.mark.parametrize("max_steps", [-1, 1, 7, 8, 100])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("group", [1, 2, 3, 7, 50])
def test_plan_equals_the_references(reference_plan, group, drop_last, max_steps):
    for n in (4, 5, 30, 97):
        for batch in (1, 3, 4):
            for epochs in (0.1, 0.3, 1, 2.5, 3):
                loader = DataLoader(range(n), batch_size=batch, drop_last=drop_last)
                expected, total = reference_plan(loader, batch=batch, group=group, epochs=epochs, max_steps=max_steps)
                plan = plan_training(
                    num_batches=len(loader),
                    num_examples=n,
                    gradient_accumulation_steps=group,
                    num_train_epochs=epochs,
                    max_steps=max_steps,
                    total_train_batch_size=total,
                )
                assert values(plan) == expected, (n, batch, epochs)


@pytest.mark.parametrize(("group", "max_steps"), [(1, 1), (1, 10), (3, 10)])
def test_plan_of_data_without_length_equals_the_references(reference_plan, group, max_steps):
    expected, total = reference_plan(
        DataLoader(Stream(), batch_size=4), batch=4, group=group, epochs=3, max_steps=max_steps
    )
    plan = plan_training(
        num_batches=None,
        num_examples=0,
        gradient_accumulation_steps=group,
        num_train_epochs=3,
        max_steps=max_steps,
        total_train_batch_size=total,
    )
    assert values(plan) == expected
    assert plan.num_train_epochs == sys.maxsize
    assert list(itertools.islice(plan.sizes_of_updates(), 100)) == [group] * 100


def make_plan(**changes):
    given = {
        "num_batches": 8,
        "num_examples": 30,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 1,
        "max_steps": -1,
        "total_train_batch_size": 12,
    }
    return plan_training(**{**given, **changes})


@pytest.mark.parametrize(("batches", "group"), [(8, 3), (9, 3), (1, 5), (5, 1), (4, 4)])
def test_updates_of_an_epoch_take_all_its_batches(batches, group):
    plan = make_plan(num_batches=batches, gradient_accumulation_steps=group)
    taken = list(plan.sizes_of_updates())
    assert len(taken) == plan.num_update_steps_per_epoch
    assert sum(taken) == batches
    assert taken[:-1] == [group] * (len(taken) - 1)
    assert 1 <= taken[-1] <= group
    assert list(plan.sizes_of_updates(done=batches)) == []


def test_updates_of_a_resumed_epoch_take_what_is_left():
    assert list(make_plan().sizes_of_updates(done=3)) == [3, 2]
    assert list(make_plan().sizes_of_updates(done=4)) == [3, 1]  # as when the batch size has changed


def test_an_update_that_was_carried_over_is_completed_first():
    plan = make_plan(short_updates="carry")
    assert plan.num_update_steps_per_epoch == 2
    first, second = list(plan.sizes_of_updates()), list(plan.sizes_of_updates(carried=2))
    assert (first, second) == ([3, 3, 2], [1, 3, 3, 1])
    assert [plan.carried(gathered) for gathered in (1, 2, 3)] == [1, 2, 0]
    assert make_plan().carried(2) == 0


@pytest.mark.parametrize(
    ("short_updates", "with_length", "shorter_than_an_update", "without_length"),
    [("step", True, True, True), ("leak", True, True, False), ("carry", False, True, False)],
)
def test_whether_a_short_update_steps(short_updates, with_length, shorter_than_an_update, without_length):
    plans = [make_plan(short_updates=short_updates, **data) for data in ({}, {"num_batches": 2})]
    plans.append(make_plan(short_updates=short_updates, num_batches=None, max_steps=5))
    assert [plan.steps_when_short for plan in plans] == [with_length, shorter_than_an_update, without_length]
    assert [plan.parts_of_loss(2) for plan in plans] == [3 if short_updates == "carry" else 2] * 3


def test_plan_is_frozen():
    with pytest.raises(AttributeError):
        make_plan().max_steps = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_batches": None}, r"max_steps=-1: .*set max_steps"),
        ({"num_batches": None, "max_steps": 0}, r"max_steps=0: .*set max_steps"),
        ({"num_batches": 0}, "train_dataset gives no batch"),
        ({"num_batches": 0, "max_steps": 10}, "dataloader_drop_last"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0"),
    ],
)
def test_a_run_that_cannot_be_planned_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**changes)


# ---------------------------------------------------------------------------------------------------- the state


def filled(module, counter):
    return module.TrainerState(
        epoch=0.1 + 0.2,
        global_step=7,
        max_steps=10,
        train_batch_size=4,
        num_train_epochs=2,
        total_flos=1.5e20,
        log_history=[{"loss": 1 / 3, "epoch": 0.5, "step": 3}, {"eval_loss": math.inf, "text": "é\n"}],
        best_metric=0.25,
        best_global_step=5,
        best_model_checkpoint="out/checkpoint-5",
        trial_params={"lr": 1e-5, "a": True},
        stateful_callbacks=[module.TrainerControl(should_save=True), counter(1), counter(2)],
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda module, _: module.TrainerState(),
        lambda module, _: module.TrainerState(stateful_callbacks=[module.TrainerControl()]),
        filled,
    ],
)
def test_json_equals_the_references_byte_for_byte(tmp_path, make):
    counters = (type("Counter", (Counter,), {}), type("Counter", (ReferenceCounter,), {}))
    make(sys.modules["mainspring.state"], counters[0]).save_to_json(tmp_path / "ours.json")
    make(reference, counters[1]).save_to_json(str(tmp_path / "theirs.json"))
    assert (tmp_path / "ours.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()


def test_json_comes_back_equal_and_is_read_by_the_reference(tmp_path):
    state = filled(sys.modules["mainspring.state"], Counter)
    state.save_to_json(tmp_path / "state.json")
    assert TrainerState.load_from_json(tmp_path / "state.json") == state
    theirs = reference.TrainerState.load_from_json(str(tmp_path / "state.json"))
    assert vars(theirs) == vars(state)


def test_a_state_of_an_older_generation_is_read(tmp_path):
    file = tmp_path / "trainer_state.json"
    content = json.loads(json.dumps(vars(TrainerState(global_step=3))))
    for absent in ("best_global_step", "stateful_callbacks"):
        del content[absent]
    file.write_text(json.dumps({**content, "epoch": None, "log_history": None}))
    state = TrainerState.load_from_json(file)
    assert (state.epoch, state.global_step, state.best_global_step) == (0, 3, None)
    assert (state.stateful_callbacks, state.log_history) == ({}, [])


def test_unknown_keys_are_ignored_and_named(tmp_path, caplog):
    (tmp_path / "s.json").write_text('{"global_step": 3, "from_the_future": 1}')
    assert TrainerState.load_from_json(tmp_path / "s.json").global_step == 3
    assert "from_the_future" in caplog.text


@pytest.mark.parametrize("text", ["", '{"global_step": ', "[1]"])
def test_a_broken_state_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"s\.json"):
        TrainerState.load_from_json(tmp_path / "s.json")


def test_two_states_share_no_history():
    TrainerState().log_history.append({})
    assert TrainerState().log_history == []


@pytest.mark.parametrize("max_steps", [1, 10, 999])
@pytest.mark.parametrize("steps", [(500, 500, 500), (0.1, 0.25, 0.5), (1, 3, 0.999), (5, None, 7)])
def test_ratio_steps_equal_the_references(steps, max_steps):
    args = SimpleNamespace(logging_steps=steps[0], eval_steps=steps[1], save_steps=steps[2])
    ours, theirs = TrainerState(), reference.TrainerState()
    ours.compute_steps(args, max_steps)
    theirs.compute_steps(args, max_steps)
    assert vars(ours) == vars(theirs)


@pytest.mark.parametrize("trial", [None, {"lr": 0.1}, SimpleNamespace(params={"lr": 0.1})])
def test_training_references_of_a_trial(trial):
    trainer = SimpleNamespace(
        hp_name=lambda trial: "run-1",
        _trial=trial,
        is_local_process_zero=lambda: True,
        is_world_process_zero=lambda: False,
    )
    state = TrainerState()
    state.init_training_references(trainer, 10, 2, trial)
    assert (state.max_steps, state.num_train_epochs) == (10, 2)
    assert (state.is_local_process_zero, state.is_world_process_zero) == (True, False)
    assert state.trial_params == (trial and {"lr": 0.1})
    assert state.trial_name == (trial and "run-1")


def test_a_trial_without_parameters_is_refused():
    trainer = SimpleNamespace(is_local_process_zero=bool, is_world_process_zero=bool)
    with pytest.raises(TypeError, match="trial=3"):
        TrainerState().init_training_references(trainer, 10, 2, 3)


# ---------------------------------------------------------------------------------------------------- callback states


def test_only_exportable_callbacks_are_stored():
    with pytest.raises(TypeError, match="int has no state"):
        TrainerState(stateful_callbacks=[3])


def test_collect_is_up_to_date_and_does_not_grow():
    first, second, control = Counter(1), Counter(2), TrainerControl()
    state = TrainerState(stateful_callbacks=[first, second, control])
    state.stateful_callbacks["Absent"] = {"args": {}, "attributes": {}}
    for seen in (5, 6):
        second.seen = seen
        state.collect([first, object(), second, control])
    assert state.stateful_callbacks["Counter"] == [first.state(), second.state()]
    assert state.stateful_callbacks["Counter"][1]["attributes"] == {"seen": 6}
    assert "Absent" in state.stateful_callbacks


def test_collect_takes_callbacks_made_for_the_reference():
    state = TrainerState()
    state.collect([ReferenceCounter(3)])
    assert state.stateful_callbacks == {"ReferenceCounter": {"args": {"start": 3}, "attributes": {"seen": 0}}}


def test_restoring_changes_the_live_objects_in_order():
    first, second, foreign, control = Counter(), Counter(), ReferenceCounter(), TrainerControl()
    stored = {
        "Counter": [Counter(1).state(), {"args": {"start": 2}, "attributes": {"seen": 9}}],
        "ReferenceCounter": {"args": {"start": 5}, "attributes": {"seen": 1}},
        "TrainerControl": TrainerControl(should_training_stop=True).state(),
    }
    assert restore_callbacks([first, object(), second, foreign], control, stored) == []
    assert (first.start, first.seen) == (1, 0)
    assert (second.start, second.seen) == (2, 9)
    assert (foreign.start, foreign.seen) == (5, 1)
    assert control.should_training_stop


def test_restoring_names_what_finds_no_object():
    one = Counter()
    stored = {"Counter": [Counter(1).state(), Counter(2).state()], "Gone": Counter().state()}
    assert restore_callbacks([one], TrainerControl(), stored) == ["Counter", "Gone"]
    assert one.start == 1


def test_restoring_trusts_the_class_about_its_arguments():
    class Hidden(ExportableState):
        def __init__(self, limit=0):
            self._limit, self.untouched = limit, "fresh"

        def state(self):
            return {"args": {"limit": self._limit}, "attributes": {}}

    live = Hidden()
    assert restore_callbacks([live], TrainerControl(), {"Hidden": Hidden(7).state()}) == []
    assert live._limit == 7


def test_state_without_implementation_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="ExportableState is an ExportableState: give it a method state"):
        ExportableState().state()


def test_control_makes_the_round_trip():
    control = TrainerControl(should_log=True)
    assert TrainerControl.from_state(control.state()) == control
    assert control.state() == reference.TrainerControl(should_log=True).state()


# ---------------------------------------------------------------------------------------------------- progress


def test_progress_comes_back_bit_for_bit(tmp_path):
    progress = Progress(epoch=2, batches=3, samples=10**12, window_loss=0.1 + 0.2, total_loss=1e-320, first_step=4)
    progress.to_json(tmp_path / "p.json")
    assert Progress.from_json(tmp_path / "p.json") == progress


def test_progress_of_a_lost_run_is_kept_as_it_is(tmp_path):
    Progress(window_loss=math.nan).to_json(tmp_path / "p.json")
    assert math.isnan(Progress.from_json(tmp_path / "p.json").window_loss)


def test_progress_is_none_where_the_reference_wrote_the_checkpoint(tmp_path):
    assert Progress.from_json(tmp_path / "p.json") is None


def test_state_imports_no_torch():
    import subprocess

    code = (
        "import sys, mainspring.state, mainspring.callbacks; sys.exit(any(m in sys.modules for m in ('torch', 'tqdm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_progress_of_a_file_with_a_key_that_is_gone(tmp_path):
    path = tmp_path / "progress.json"
    path.write_text('{"epoch": 2, "batches": 3, "tokens": 0}', encoding="utf-8")
    assert Progress.from_json(path) == Progress(epoch=2, batches=3)
