"""Updates under torch's profiler: which ones, what is written, and that it always stops."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainerCallback, TrainingArguments
from mainspring.callbacks.profiling import ProfilerCallback
from mainspring.errors import OptionError
from tests.arguments.observation import heard
from tests.helpers import data, models


def build(folder: Path, callbacks: Any = (), **options: Any) -> Trainer:
    quiet = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 6, "profile_steps": "2:4"}
    args = TrainingArguments(str(folder), **{**quiet, **options})
    points = data.Items(data.points(16))
    return Trainer(models.Regressor(), args, train_dataset=points, eval_dataset=points, callbacks=[*callbacks])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def written(updates: str) -> list[str]:
    return [f"profile/operations_rank0_updates_{updates}.txt", f"profile/trace_rank0_updates_{updates}.json.gz"]


def marks(folder: Path) -> list[str]:
    """The updates that the trace has marks of."""
    (path,) = (folder / "profile").glob("*.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted({event["name"] for event in events if re.fullmatch(r"update \d+", event.get("name", ""))})


def is_recording() -> bool:
    return torch._C._autograd._profiler_enabled()


def test_the_updates_of_the_range_are_in_the_trace_and_nothing_else_is_written(tmp_path: Path) -> None:
    build(tmp_path).train()
    assert files(tmp_path) == written("2-4")
    assert marks(tmp_path) == ["update 3", "update 4"]
    table = (tmp_path / written("2-4")[0]).read_text()
    assert "aten::addmm" in table
    assert "Self CPU" in table
    assert not is_recording()


def test_the_first_update_can_be_profiled_and_the_last(tmp_path: Path) -> None:
    build(tmp_path, profile_steps="0:6").train()
    assert marks(tmp_path) == [f"update {number}" for number in range(1, 7)]


def test_it_changes_no_number_of_the_run(tmp_path: Path) -> None:
    def losses(**options: Any) -> list[float]:
        torch.manual_seed(0)
        trainer = build(tmp_path, logging_steps=1, **options)
        trainer.train()
        return [log["loss"] for log in trainer.state.log_history if "loss" in log]

    assert losses() == losses(profile_steps=None)


def test_a_run_that_ends_early_leaves_what_there_is(tmp_path: Path) -> None:
    with heard() as messages:
        build(tmp_path, max_steps=3).train()
    assert files(tmp_path) == written("2-3")
    assert any("before update 4" in message for message in messages)


@pytest.mark.parametrize(
    ("event", "error"), [("on_substep_end", ZeroDivisionError), ("on_pre_optimizer_step", KeyboardInterrupt)]
)
def test_an_exception_stops_it_and_leaves_no_file(event: str, error: type[BaseException], tmp_path: Path) -> None:
    class Fails(TrainerCallback):
        def fail(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                assert is_recording()
                raise error

    setattr(Fails, event, Fails.fail)
    trainer = build(tmp_path, [Fails()], gradient_accumulation_steps=2)
    with pytest.raises(error), heard() as messages:
        trainer.train()
    assert not is_recording()
    assert files(tmp_path) == []
    assert sum("no profile is written" in message for message in messages) == 1
    trainer.pop_callback(Fails)
    trainer.train()
    assert files(tmp_path) == written("2-4")


def test_a_run_that_goes_on_inside_the_range_profiles_the_rest(tmp_path: Path) -> None:
    first = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3, "profile_steps": None}
    build(tmp_path, **first).train()
    build(tmp_path, save_strategy="steps", save_steps=100, profile_steps="2:5").train(resume_from_checkpoint=True)
    assert [name for name in files(tmp_path) if name.startswith("profile")] == written("3-5")


@pytest.mark.parametrize(
    ("options", "why"),
    [({"profile_steps": "0:3"}, "goes on when 3 updates are done"), ({"profile_steps": "6:9"}, "has 6 updates")],
)
def test_a_range_outside_of_the_run_is_said(options: Any, why: str, tmp_path: Path) -> None:
    first = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3, "profile_steps": None}
    build(tmp_path, **first).train()
    with heard() as messages:
        build(tmp_path, **options).train(resume_from_checkpoint=True)
    assert sum("nothing is profiled" in message and why in message for message in messages) == 1
    assert not (tmp_path / "profile").exists()


def test_evaluations_and_accumulation_may_fall_into_the_range(tmp_path: Path) -> None:
    build(tmp_path, eval_strategy="steps", eval_steps=1, gradient_accumulation_steps=2, logging_steps=1).train()
    assert marks(tmp_path) == ["update 3", "update 4"]


def test_without_the_option_there_is_no_callback(tmp_path: Path) -> None:
    trainer = build(tmp_path, profile_steps=None)
    assert not any(isinstance(one, ProfilerCallback) for one in trainer.callback_handler.callbacks)


@pytest.mark.parametrize("window", ["10", "10:", ":20", "a:b", "10:20:2", "-1:5", "1.5:3", ""])
def test_what_is_no_range_is_refused(window: str) -> None:
    with pytest.raises(OptionError, match=r"^profile_steps=.*start:end, such as 10:20"):
        TrainingArguments("out", profile_steps=window)


@pytest.mark.parametrize("window", ["20:10", "5:5"])
def test_a_range_without_updates_is_refused(window: str) -> None:
    with pytest.raises(OptionError, match=r"^profile_steps=.*no update in it"):
        TrainingArguments("out", profile_steps=window)
