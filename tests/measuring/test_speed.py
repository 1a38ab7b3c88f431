"""The share of time spent waiting for data, and the share of the devices' operations that a run makes use of."""

from __future__ import annotations

import contextlib
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainingArguments
from mainspring.measuring import speed as speed_module, window
from mainspring.measuring.speed import Peak, Speed
from mainspring.measuring.waiting import Loading, WaitingAdvice
from mainspring.measuring.window import Pace, Stretch
from tests.arguments.observation import heard
from tests.helpers import data, models


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now, self.readings = 100.0, 0

    def __call__(self) -> float:
        self.readings += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(window, "perf_counter", clock)
    return clock


def alone(numbers: Any) -> list[list[int]]:
    return [list(numbers)]


def wait(pace: Any, clock: Clock, seconds: float) -> None:
    asked = clock.now
    clock.now += seconds
    pace.waited_since(asked)


# ---- a stretch of training -------------------------------------------------------------------------------------------


def test_waiting_is_a_share_of_the_time_without_evaluations_and_saves(clock: Clock) -> None:
    pace = Pace(operations=50.0)
    wait(pace, clock, 1)
    clock.now += 6
    with pace.apart():
        clock.now += 100
    wait(pace, clock, 1)
    stretch = pace.take(operations=250.0)
    assert stretch == Stretch(seconds=8.0, waited=2.0, updates=2, operations=200.0)
    assert stretch.waiting == 0.25
    assert stretch.utilization(peak=100.0) == 0.25


def test_every_stretch_begins_anew(clock: Clock) -> None:
    pace = Pace()
    wait(pace, clock, 4)
    with pace.apart():
        clock.now += 1
    pace.take(10.0)
    clock.now += 2
    wait(pace, clock, 2)
    assert pace.take(14.0) == Stretch(seconds=4.0, waited=2.0, updates=1, operations=4.0)


def test_an_exception_in_between_does_not_count_either(clock: Clock) -> None:
    pace = Pace()
    with contextlib.suppress(ZeroDivisionError), pace.apart():
        clock.now += 5
        raise ZeroDivisionError
    clock.now += 1
    assert pace.take(0.0).seconds == 1.0


def test_what_nobody_measured_is_not_told(clock: Clock) -> None:
    clock.now += 3
    stretch = Pace(5.0)
    clock.now += 1
    taken = stretch.take(5.0)
    assert (taken.waiting, taken.utilization(1.0)) == (None, None)
    assert Speed(loading=Loading(0), peak=Peak(1.0)).logs(0.0, alone) == {}


# ---- logs ------------------------------------------------------------------------------------------------------------


def test_the_process_that_waited_longest_is_told_of(clock: Clock) -> None:
    speed = Speed(loading=Loading(0))
    wait(speed, clock, 1)
    clock.now += 9
    assert speed.logs(0.0, lambda numbers: [list(numbers), [400_000], [-1]]) == {"data_wait_fraction": 0.4}


def test_a_run_that_tells_nothing_exchanges_nothing(clock: Clock) -> None:
    speed = Speed()
    wait(speed, clock, 1)
    assert speed.logs(5.0, lambda numbers: pytest.fail("the others were asked")) == {}


def test_an_update_costs_two_readings_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(readings)))
    monkeypatch.setattr(window, "perf_counter", lambda: float(next(readings)))
    trainer = Trainer(models.Regressor(), options(tmp_path))
    before = next(readings)
    for _ in range(5):
        trainer.get_batch_samples(iter([{}]), 1, torch.device("cpu"))
    assert next(readings) - before - 1 == 10


# ---- advice ----------------------------------------------------------------------------------------------------------


def stretch(seconds: float, updates: int) -> Stretch:
    return Stretch(seconds=seconds, waited=0.0, updates=updates, operations=0.0)


def test_the_advice_comes_once_and_only_after_a_while() -> None:
    advice = WaitingAdvice(Loading(workers=0))
    assert advice.heed(stretch(0.5, 9), 0.9) is None  # too short
    said = advice.heed(stretch(0.5, 1), 0.9)
    assert said is not None
    assert "90% of the last 10 updates' time: set dataloader_num_workers" in said
    assert advice.heed(stretch(9.0, 90), 0.9) is None


@pytest.mark.parametrize(
    ("seconds", "updates", "waiting"),
    [(0.9, 1000, 1.0), (100.0, 9, 1.0), (2.0, 20, 0.2)],
    ids=["brief", "few", "little"],
)
def test_no_advice(seconds: float, updates: int, waiting: float) -> None:
    assert WaitingAdvice(Loading(workers=0)).heed(stretch(seconds, updates), waiting) is None


def test_a_slow_beginning_is_not_held_against_the_run() -> None:
    advice = WaitingAdvice(Loading(workers=0))
    assert advice.heed(stretch(5.0, 9), 0.9) is None
    assert advice.heed(stretch(95.0, 90), 0.05) is None
    assert advice.heed(stretch(9.0, 90), 0.1) is None
    assert advice.heed(stretch(9.0, 90), 0.3) is not None


@pytest.mark.parametrize(
    ("loading", "wanted"),
    [
        (Loading(0), ["dataloader_num_workers"]),
        (Loading(0, pins=False), ["dataloader_num_workers", "dataloader_pin_memory=True"]),
        (
            Loading(3, prefetch=5, pins=True),
            ["dataloader_num_workers (it is 3)", "dataloader_prefetch_factor (it is 5)"],
        ),
        (Loading(3), ["dataloader_prefetch_factor (it is 2)"]),
    ],
)
def test_the_advice_names_what_is_left_to_do(loading: Loading, wanted: list[str]) -> None:
    advice = loading.advice()
    assert all(part in advice for part in wanted)
    assert ("pin_memory" in advice) == (loading.pins is False)


def test_the_advice_is_a_warning_of_the_run(clock: Clock) -> None:
    speed = Speed(loading=Loading(workers=2))
    with heard() as messages:
        for _ in range(3):
            for _ in range(10):
                wait(speed, clock, 1)
            speed.logs(0.0, alone)
    assert len(messages) == 1
    assert "100% of the last 10 updates" in messages[0]


# ---- runs ------------------------------------------------------------------------------------------------------------


def options(folder: Path, **more: Any) -> TrainingArguments:
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    return TrainingArguments(str(folder), **{**quiet, "max_steps": 4, "logging_steps": 2, **more})


def run_of(folder: Path, cls: type[Trainer] = Trainer, **more: Any) -> Trainer:
    texts = data.Items(data.ragged_text(16))
    trainer = cls(
        models.tiny_gpt2(),
        options(folder, **more),
        data_collator=data.collate_text,
        train_dataset=texts,
        eval_dataset=texts,
    )
    trainer.train()
    return trainer


def logs_of(folder: Path, cls: type[Trainer] = Trainer, **more: Any) -> list[dict[str, Any]]:
    return [log for log in run_of(folder, cls, **more).state.log_history if "loss" in log]


def test_logs_tell_of_waiting_unless_the_references_are_wanted(tmp_path: Path) -> None:
    logs = logs_of(tmp_path)
    assert [0 < log["data_wait_fraction"] < 1 for log in logs] == [True, True]
    assert not any("mfu" in log for log in logs)  # of this CPU nothing is known
    for generation in ("5", "4.37"):
        assert not any("data_wait_fraction" in log for log in logs_of(tmp_path, compat=generation))


def test_slow_data_shows(tmp_path: Path) -> None:
    class Slow(Trainer):
        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            return super().get_batch_samples(delayed(epoch_iterator), num_batches, device)

    def delayed(batches: Any) -> Any:
        for batch in batches:
            moved.now += 1000.0
            yield batch

    moved = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "perf_counter", moved)
        patch.setattr("mainspring.trainer.time.perf_counter", moved)
        logs = logs_of(tmp_path, cls=Slow)
    assert [log["data_wait_fraction"] for log in logs] == [1.0, 1.0]


def test_an_override_that_reads_by_itself_is_not_measured(tmp_path: Path) -> None:
    class Own(Trainer):
        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
            batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
            return batches, self._get_num_items_in_batch(batches, device)

    assert not any("data_wait_fraction" in log for log in logs_of(tmp_path, cls=Own))


class Timed(Trainer):
    """Ten seconds for each micro-batch, a thousand for each evaluation and each save."""

    clock = Clock()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.now += 10
        return super().training_step(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.now += 1000
        return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.now += 1000
        return super()._save_checkpoint(*args, **kwargs)


@pytest.mark.parametrize("compat", ["none", "5"])
def test_the_use_made_of_a_peak_that_was_given(compat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "perf_counter", Timed.clock)
    intervals = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    run = run_of(
        tmp_path,
        cls=Timed,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        peak_flops=1e6,
        compat=compat,
        **intervals,
    )
    logs = [log for log in run.state.log_history if "loss" in log]
    # From a log to the next there are two updates of two micro-batches.
    assert sum(log["mfu"] for log in logs) * 40 * 1e6 == pytest.approx(run.state.total_flos)
    assert [log["mfu"] > 0 for log in logs] == [True, True]


def test_a_peak_without_operations_is_said_to_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(speed_module.logger, "warning_once", told.append)
    speed = Speed(peak=Peak(1e12, was_given=True))
    assert speed.logs(0.0, alone) == {}
    assert told[0].startswith("peak_flops has no effect")
    Speed(peak=Peak(1e12)).logs(0.0, alone)
    assert len(told) == 1


def test_processes_that_share_a_batch_count_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(models.tiny_gpt2(), options(tmp_path, peak_flops=10.0))
    monkeypatch.setattr(trainer._engine, "world_size", 8)
    monkeypatch.setattr(trainer._engine, "data_world_size", 2)
    assert trainer._measure_speed()._peak == Peak(10.0 * 8 * 4, was_given=True)
