"""A run that is asked to stop saves, says so, and is continued to the bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from mainspring import TrainerCallback, checkpoint
from mainspring.errors import EXIT_RESUMABLE, Preempted
from tests.helpers.runs import history, same, trainer, weights


@pytest.fixture(scope="module", params=[2, 500], ids=["saving with each evaluation", "not saving"])
def save_steps(request: pytest.FixtureRequest) -> int:
    steps: int = request.param
    return steps


@pytest.fixture(scope="module")
def whole(save_steps: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    run = trainer(tmp_path_factory.mktemp("whole"), eval_strategy="steps", eval_steps=2, save_steps=save_steps)
    run.train()
    return run, weights(run)


class Raise(TrainerCallback):
    """A signal at the `count`-th time that an event happens."""

    def __init__(self, event: str, count: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.left, self.number = count, number
        self.seen: list[str] = []
        setattr(self, event, self.happen)

    def happen(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if not self.left:
            signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    ("event", "count", "step"),
    [
        ("on_step_begin", 1, 1),
        ("on_substep_end", 4, 4),
        ("on_step_end", 9, 9),
        ("on_epoch_end", 1, 3),
        ("on_prediction_step", 1, 2),  # the first batch of the first evaluation
        ("on_prediction_step", 5, 6),
        ("on_evaluate", 2, 4),
        ("on_log", 3, 4),
    ],
)
def test_a_stopped_run_is_the_same_run(
    event: str, count: int, step: int, number: signal.Signals, save_steps: int, whole: Any, tmp_path: Path
) -> None:
    """Whatever the loop is doing: an update, an epoch's end, an evaluation, a save."""
    uninterrupted, expected = whole
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": save_steps}
    with pytest.raises(
        Preempted, match=rf"{number.name}: stopped at step {step} of 9; .*checkpoint-{step} continues it"
    ) as ended:
        trainer(tmp_path, callbacks=[Raise(event, count, number)], **options).train()
    assert ended.value.code == EXIT_RESUMABLE
    assert signal.getsignal(number) is signal.SIG_DFL
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(expected, weights(resumed))
    assert history(resumed) == history(uninterrupted)


def test_an_evaluation_ends_with_the_batch_that_it_is_at(tmp_path: Path) -> None:
    batches = []

    class Count(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            batches.append(state.global_step)
            if len(batches) == 2:
                signal.raise_signal(signal.SIGTERM)

    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 1}
    with pytest.raises(Preempted):
        trainer(tmp_path, callbacks=[Count()], **options).train()
    assert batches == [2, 2], "nine batches make an evaluation"


def test_the_best_model_of_an_evaluation_left_before_is_found_again(tmp_path: Path) -> None:
    options = {
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 3,
        "load_best_model_at_end": True,
        "save_total_limit": 2,
    }
    uninterrupted = trainer(tmp_path / "whole", **options)
    uninterrupted.train()
    with pytest.raises(Preempted):
        trainer(tmp_path / "stopped", callbacks=[Raise("on_prediction_step", 2)], **options).train()
    resumed = trainer(tmp_path / "stopped", **options)
    resumed.train(resume_from_checkpoint="auto")
    assert resumed.state.best_metric == uninterrupted.state.best_metric
    assert same(weights(uninterrupted), weights(resumed))


def test_time_is_up(tmp_path: Path) -> None:
    with pytest.raises(Preempted, match=r"max_time=0.001 s: stopped at step 1 of 9; .*checkpoint-1"):
        trainer(tmp_path, max_time=0.001, save_strategy="no", save_steps=0).train()
    resumed = trainer(tmp_path, save_strategy="no", save_steps=0)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 9


def test_signals_that_are_not_listened_to_are_the_systems(tmp_path: Path) -> None:
    heard = []
    former = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        run = trainer(tmp_path, stop_signals=["SIGTERM"], callbacks=[Raise("on_step_end", 2, signal.SIGUSR1)])
        assert run.train().global_step == 9
        assert heard == [signal.SIGUSR1]
        run = trainer(tmp_path, callbacks=[Raise("on_step_end", 2, signal.SIGUSR1)])
        with pytest.raises(Preempted):
            run.train()
        assert heard == [signal.SIGUSR1] * 2, "a handler of the user's own has it too"
    finally:
        signal.signal(signal.SIGUSR1, former)


@pytest.mark.parametrize("jit", [True, False])
def test_without_checkpoints_only_enable_jit_checkpoint_listens(jit: bool, tmp_path: Path) -> None:
    heard = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        run = trainer(
            tmp_path,
            save_strategy="no",
            save_steps=0,
            enable_jit_checkpoint=jit,
            callbacks=[Raise("on_step_end", 2)],
        )
        if jit:
            with pytest.raises(Preempted, match="checkpoint-2"):
                run.train()
        else:
            assert run.train().global_step == 9
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)


class Fail(TrainerCallback):
    """A mistake of the user's in the middle of update 5."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            raise ZeroDivisionError("a mistake")


def test_an_exception_saves_nothing_and_leaves_what_is_there(save_steps: int, whole: Any, tmp_path: Path) -> None:
    uninterrupted, expected = whole
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": save_steps}
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callbacks=[Fail()], **options).train()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == (["checkpoint-2", "checkpoint-4"] if save_steps == 2 else [])
    assert not any(checkpoint.verify(tmp_path / name) for name in left)
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint="auto")
    assert resumed._initial_global_step == (4 if left else 0)
    assert same(expected, weights(resumed))
    assert history(resumed) == history(uninterrupted)


def test_an_exception_saves_the_last_whole_update_where_that_is_asked_for(
    save_steps: int, whole: Any, tmp_path: Path
) -> None:
    uninterrupted, expected = whole
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": save_steps}
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, save_on_exception=True, callbacks=[Fail()], **options).train()
    assert not checkpoint.verify(tmp_path / "checkpoint-4")
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 4
    assert same(expected, weights(resumed))
    assert history(resumed) == history(uninterrupted)
