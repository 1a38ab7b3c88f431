"""The report of memory: its keys, its stages, and that it tells what was allocated."""

from __future__ import annotations

import gc
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.trainer_utils import TrainerMemoryTracker as ReferenceTracker

from mainspring import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments
from mainspring.errors import NotAvailableError
from mainspring.measuring import memory
from mainspring.measuring.gauges import Counted, Sampled
from mainspring.measuring.memory import TrainerMemoryTracker
from mainspring.trainer_utils import TrainerMemoryTracker as FromTheDoor
from tests.helpers import data, models

MB = 2**20
BIG = 192 * MB
CLOSE = 32 * MB
"""What else a process may allocate, or give back, meanwhile."""

OPTIONS: dict[str, Any] = {
    "skip_memory_metrics": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "max_steps": 4,
    "logging_steps": 2,
}


class Model(models.Regressor):
    """Needs `passing` bytes in each forward pass, and keeps `kept` bytes from the first one on."""

    def __init__(self, passing: int = 0, kept: int = 0) -> None:
        super().__init__()
        self.passing, self.kept = passing, kept
        self.held: Any = None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        if self.kept and self.held is None:
            self.held = torch.ones(self.kept // 4)
        if self.passing:
            torch.ones(self.passing // 4)
        return super().forward(x, labels)


def build(folder: Path, model: Any = None, api: Any = None, cls: Any = None, **options: Any) -> Any:
    api = api or sys.modules["mainspring"]
    args = api.TrainingArguments(str(folder), **{**OPTIONS, **options})
    points = data.Items(data.points(16))
    return (cls or api.Trainer)(model or models.Regressor(), args, train_dataset=points, eval_dataset=points)


def told(metrics: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in metrics.items() if "_mem_" in name}


def keys(*stages: str) -> set[str]:
    found = {f"{stage}_mem_cpu_{what}_delta" for stage in stages for what in ("alloc", "peaked")}
    return found | ({"before_init_mem_cpu"} if "init" in stages else set())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "mainspring-memory"]


# ---- the layout ------------------------------------------------------------------------------------------------------


def script(api: Any, folder: Path) -> list[list[str]]:
    """The keys that training, evaluation and prediction return, twice, and those of all logs, in their order."""
    trainer = build(folder, api=api, eval_strategy="steps", eval_steps=2)
    trainer.remove_callback(api.trainer_callback.PrinterCallback)
    points = data.Items(data.points(8))
    returned = [trainer.train().metrics, trainer.evaluate(), trainer.predict(points).metrics, trainer.train().metrics]
    first = build(folder, api=api)
    several = build(folder, api=api)
    returned += [first.evaluate(), first.train().metrics, several.evaluate({"a": points, "b": points})]
    return [[*told(metrics)] for metrics in [*returned, *trainer.state.log_history]]


@pytest.mark.parity
def test_the_keys_and_their_order_are_the_references(tmp_path: Path) -> None:
    ours = script(sys.modules["mainspring"], tmp_path / "ours")
    assert ours == script(transformers, tmp_path / "theirs")
    assert [set(names) for names in ours[:7]] == [
        keys("init", "train"),
        keys("eval"),
        keys("test"),
        keys("train"),
        keys("init", "eval"),
        keys("train"),
        keys("init", "eval"),
    ]


@pytest.mark.parity
def test_the_table_is_the_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {
        "init_mem_cpu_alloc_delta": 3 * MB + 1,
        "train_mem_cpu_alloc_delta": -5 * MB - 1,
        "train_mem_gpu_peaked_delta": 2**31,
        "before_init_mem_cpu": 1 << 30,
        "train_runtime": 61.5,
    }
    printed = []
    for api in (sys.modules["mainspring"], transformers):
        build(tmp_path, api=api).log_metrics("train", metrics)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "-6MB" in printed[0]
    assert "2048MB" in printed[0]


def test_the_results_are_saved_in_bytes(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    metrics = trainer.train().metrics
    trainer.save_metrics("train", metrics)
    saved = json.loads((tmp_path / "train_results.json").read_text())
    assert told(saved) == told(metrics)
    assert saved["before_init_mem_cpu"] > 10 * MB


def test_nothing_is_told_or_sampled_unless_it_is_asked_for(tmp_path: Path) -> None:
    trainer = build(tmp_path, skip_memory_metrics=True)
    assert told(trainer.train().metrics) == told(trainer.evaluate()) == {}
    assert trainer._memory_tracker._gauges == []


# ---- what is told is true --------------------------------------------------------------------------------------------


def test_what_a_forward_pass_needs_for_a_while_is_the_peak(tmp_path: Path) -> None:
    metrics = build(tmp_path, Model(passing=BIG)).train().metrics
    assert BIG - CLOSE < metrics["train_mem_cpu_peaked_delta"] < BIG + CLOSE
    assert abs(metrics["train_mem_cpu_alloc_delta"]) < CLOSE


def test_what_a_stage_keeps_is_its_difference_and_what_is_freed_makes_it_negative(tmp_path: Path) -> None:
    model = Model(kept=BIG)
    trainer = build(tmp_path, model)
    metrics = trainer.train().metrics
    assert BIG - CLOSE < metrics["train_mem_cpu_alloc_delta"] < BIG + CLOSE
    assert 0 <= metrics["train_mem_cpu_peaked_delta"] < CLOSE

    class Frees(TrainerCallback):
        def on_prediction_step(self, *_: Any, **__: Any) -> None:
            model.kept, model.held = 0, None

    trainer.add_callback(Frees())
    metrics = trainer.evaluate()
    assert metrics["eval_mem_cpu_alloc_delta"] < CLOSE - BIG
    assert metrics["eval_mem_cpu_peaked_delta"] >= BIG - CLOSE


def test_what_the_constructor_allocates_joins_the_first_stage(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), **OPTIONS)
    points = data.Items(data.points(8))

    def init() -> Any:
        model = Model()
        model.held = torch.ones(BIG // 4)
        return model

    trainer = Trainer(model_init=init, args=args, train_dataset=points, eval_dataset=points)
    metrics = trainer.evaluate()
    assert BIG - CLOSE < metrics["init_mem_cpu_alloc_delta"] < BIG + CLOSE
    assert not told(metrics).keys() - keys("init", "eval")


# ---- stages ----------------------------------------------------------------------------------------------------------


def test_an_evaluation_inside_training_counts_to_training(tmp_path: Path) -> None:
    model = Model()

    class Watch(TrainerCallback):
        seen: list[Any] = []

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
            self.seen.append((told(metrics), trainer._memory_tracker.cur_stage))
            model.passing = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            model.passing = BIG if state.global_step == 2 else 0

    trainer = build(tmp_path, model, eval_strategy="steps", eval_steps=2)
    trainer.add_callback(Watch())
    metrics = trainer.train().metrics
    assert Watch.seen == [({}, "train")] * 2
    assert metrics["train_mem_cpu_peaked_delta"] > BIG - CLOSE


def test_evaluations_of_several_data_sets_are_one_stage(tmp_path: Path) -> None:
    model = Model(passing=BIG)
    trainer = build(tmp_path, model)
    small, stages = data.Items(data.points(4)), []

    class Watch(TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: Any, **__: Any) -> None:
            stages.append((told(metrics), trainer._memory_tracker.cur_stage))
            model.passing = 0

    trainer.add_callback(Watch())
    metrics = trainer.evaluate({"first": small, "second": small})
    assert stages == [({}, "eval")] * 2
    assert told(metrics).keys() == keys("init", "eval")
    assert metrics["eval_mem_cpu_peaked_delta"] > BIG - CLOSE  # the first one's


class Fails(models.Regressor):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        raise ZeroDivisionError("a mistake")


@pytest.mark.parametrize("method", ["train", "evaluate", "predict"])
def test_an_exception_ends_the_stage(method: str, tmp_path: Path) -> None:
    trainer = build(tmp_path, Fails())
    with pytest.raises(ZeroDivisionError):
        getattr(trainer, method)(*([trainer.eval_dataset] if method == "predict" else []))
    assert (trainer._memory_tracker.cur_stage, threads()) == (None, [])
    trainer.model = trainer.model_wrapped = models.Regressor()
    assert told(trainer.evaluate()).keys() == keys("init", "eval")


def test_a_constructor_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="data_collator"):
        Trainer(models.Regressor(), TrainingArguments(str(tmp_path), **OPTIONS), data_collator=3)  # type: ignore[arg-type]
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "mainspring-memory":
            thread.join(timeout=60)
    assert threads() == []


def test_generating_evaluations_are_stages_too(tmp_path: Path) -> None:
    args = Seq2SeqTrainingArguments(str(tmp_path), **OPTIONS)
    points = data.Items(data.points(8))
    trainer = Seq2SeqTrainer(models.Regressor(), args, train_dataset=points, eval_dataset=points)
    assert told(trainer.evaluate()).keys() == keys("init", "eval")
    assert told(trainer.predict(points).metrics).keys() == keys("test")


def test_only_the_first_process_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "is_world_process_zero", lambda self: False)
    trainer = build(tmp_path)
    assert trainer._memory_tracker.skip_memory_metrics
    assert told(trainer.evaluate()) == {}


# ---- overrides that measure by themselves ----------------------------------------------------------------------------


@pytest.mark.parity
@pytest.mark.parametrize("library", ["mainspring", "transformers"])
def test_an_override_that_measures_by_itself_gets_the_report(library: str, tmp_path: Path) -> None:
    api = sys.modules[library]

    class Measured(api.Trainer):  # type: ignore[misc, name-defined]
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            self._memory_tracker.start()
            metrics = super().evaluate(*args, **kwargs)
            self._memory_tracker.stop_and_update_metrics(metrics)
            return metrics

    trainer = build(tmp_path, api=api, cls=Measured)
    assert told(trainer.evaluate()).keys() == keys("init", "eval")
    assert told(trainer.evaluate()).keys() == keys("eval")
    assert told(trainer.train().metrics).keys() == keys("train")


@pytest.mark.parametrize("tracker", [TrainerMemoryTracker, ReferenceTracker])
def test_a_stage_is_named_after_the_method(tracker: Any) -> None:
    def evaluate(measured: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        measured.start()
        measured.stop_and_update_metrics(metrics)
        return metrics

    def predict(measured: Any) -> tuple[Any, dict[str, Any]]:
        measured.start()
        inner = evaluate(measured)
        metrics: dict[str, Any] = {}
        measured.stop("test")
        measured.update_metrics("test", metrics)
        return inner, metrics

    def other(measured: Any) -> None:
        measured.start()

    measured = tracker(skip_memory_metrics=False)
    measured.init_reported = True  # there was no construction
    assert evaluate(measured).keys() == keys("eval")
    assert [told(metrics).keys() for metrics in predict(measured)] == [set(), keys("test")]
    with pytest.raises(ValueError, match="other"):
        other(measured)
    other(tracker(skip_memory_metrics=True))
    assert dict(tracker.stages) == dict(TrainerMemoryTracker.stages)


def test_it_has_the_references_methods() -> None:
    # The loop of the reference's thread: ours belongs to what is sampled.
    theirs = {name for name in vars(ReferenceTracker) if not name.startswith("__")} - {"peak_monitor_func"}
    assert theirs <= {*vars(TrainerMemoryTracker)}
    assert FromTheDoor is TrainerMemoryTracker


def test_a_stage_that_was_never_ended_begins_anew() -> None:
    tracker = TrainerMemoryTracker()

    def train() -> None:
        tracker.start()

    train()
    train()
    assert (tracker.cur_stage, len(threads())) == ("train", 1)
    tracker.stop("train")
    tracker.stop("train")
    assert (tracker.cur_stage, threads()) == (None, [])


# ---- gauges ----------------------------------------------------------------------------------------------------------


class Counters:
    """A device's allocator."""

    def __init__(self) -> None:
        self.now = self.most = 100
        self.emptied = 0

    def use(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)

    def memory_allocated(self, device: Any) -> int:
        return self.now

    def max_memory_allocated(self, device: Any) -> int:
        return self.most

    def reset_peak_memory_stats(self, device: Any) -> None:
        self.most = self.now

    def empty_cache(self) -> None:
        self.emptied += 1


def test_a_device_is_told_of_beside_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters()
    counters.use(900)
    counters.use(-900)
    device = torch.device("cuda:0")
    monkeypatch.setattr(memory, "gauges_of", lambda _: [Sampled("cpu", lambda: 7), Counted(counters, device)])
    tracker = TrainerMemoryTracker(device=device)
    with tracker.during("init"):
        counters.use(20)
    metrics: dict[str, Any] = {}
    with tracker.during("train") as report:
        counters.use(500)
        counters.use(-550)
        report(metrics)
    assert metrics == {
        "init_mem_cpu_alloc_delta": 0,
        "init_mem_cpu_peaked_delta": 0,
        "init_mem_gpu_alloc_delta": 20,
        "init_mem_gpu_peaked_delta": 0,
        "train_mem_cpu_alloc_delta": 0,
        "train_mem_cpu_peaked_delta": 0,
        "train_mem_gpu_alloc_delta": -50,
        "train_mem_gpu_peaked_delta": 550,
        "before_init_mem_cpu": 7,
        "before_init_mem_gpu": 100,
    }
    assert counters.emptied == 4


def test_without_psutil_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(NotAvailableError, match="^skip_memory_metrics=False: .*pip install psutil"):
        build(tmp_path)
    build(tmp_path, skip_memory_metrics=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_told_of(tmp_path: Path) -> None:
    metrics = build(tmp_path, use_cpu=False).train().metrics
    assert told(metrics).keys() == keys("init", "train") | {
        name.replace("cpu", "gpu") for name in keys("init", "train")
    }
    assert metrics["train_mem_gpu_peaked_delta"] > 0
