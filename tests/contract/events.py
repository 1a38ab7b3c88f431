"""A callback that writes down every event, and the settings in which both libraries must fire the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers import data
from tests.helpers.sides import Side
from tests.parity.harness import SEED_OF_MODELS, Drive, Task, seed_all, train
from tests.parity.tasks import EVALUATES, mean_error, regression

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_step_begin",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_substep_end",
    "on_step_end",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_log",
    "on_prediction_step",
    "on_push_begin",
)
FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")

Event = tuple[str, int, float, str, tuple[str, ...]]
"""Name, `global_step`, `epoch`, the control flags that are set (their initials), the keyword arguments' names."""

Answer = Callable[[str, Any, Any], Any]
"""`answer(event, state, control)`: what the callback does and returns."""


def nothing(event: str, state: Any, control: Any) -> None:
    """Only watch."""


def recorder(side: Side, events: list[Event], answer: Answer = nothing) -> Any:
    """A callback of `side` that appends every event to `events`, then answers it.

    Its position among the callbacks is the user's: after the flow policy, before the progress display.
    """
    base: Any = side.module("trainer_callback").TrainerCallback

    def handler(name: str) -> Callable[..., Any]:
        def handle(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            flags = "".join(flag.split("_")[1][0] for flag in FLAGS if getattr(control, flag))
            epoch = round(float(state.epoch or 0), 6)
            events.append((name, state.global_step, epoch, flags, tuple(sorted(kwargs))))
            return answer(name, state, control)

        return handle

    return type("Recorder", (base,), {name: handler(name) for name in EVENTS})()


@dataclass(frozen=True)
class Setting:
    """One way to run whose events are compared.

    Attributes:
        name: Identifies the setting.
        options: Arguments of both sides.
        answer: What the recording callback answers.
        drive: What the script does.
        task: Model and data.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    answer: Answer = nothing
    drive: Drive = train
    task: Task = field(default_factory=lambda: regression(samples=10, compute_metrics=mean_error))


def events_of(side: Side, setting: Setting, folder: Path) -> list[Event]:
    """Run `setting` on `side` and give its events."""
    events: list[Event] = []

    def build(**more: Any) -> Any:
        seed_all(SEED_OF_MODELS)
        callback = recorder(side, events, setting.answer)
        args = side.arguments(folder, **{**setting.options, **more})
        return side.api.Trainer(
            model=setting.task.model(), args=args, **{**setting.task.inputs(side), "callbacks": [callback]}
        )

    setting.drive(side, build)
    return events


def _at(step: int, event: str, **flags: bool) -> Answer:
    def answer(name: str, state: Any, control: Any) -> Any:
        if name == event and state.global_step == step:
            for flag, value in flags.items():
                setattr(control, flag, value)
            return control
        return None

    return answer


def _evaluate_and_predict(side: Side, build: Any) -> tuple[Any, Any]:
    trainer = build()
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    return trainer, None


def _resume(side: Side, build: Any) -> tuple[Any, Any]:
    build(max_steps=5).train()
    trainer = build()
    return trainer, trainer.train(resume_from_checkpoint=True)


def _train_then_evaluate(side: Side, build: Any) -> tuple[Any, Any]:
    trainer = build()
    trainer.train()
    return trainer, trainer.evaluate()


def _two_sets() -> Task:
    sets = {"near": data.Items(data.points(6, 5)), "far": data.Items(data.points(9, 6))}
    return regression(samples=10, eval_dataset=sets)


EVERYTHING = {**EVALUATES, "save_strategy": "steps", "save_steps": 2}

SETTINGS: tuple[Setting, ...] = (
    Setting("plain"),
    Setting("accumulation", {"gradient_accumulation_steps": 2, "num_train_epochs": 2}),
    Setting("log_eval_save_by_steps", {**EVERYTHING, "logging_steps": 3}),
    Setting(
        "log_eval_save_by_epoch", {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch"}
    ),
    Setting("nothing_asked_for", {"logging_strategy": "no"}),
    Setting("max_steps_off_every_grid", {**EVERYTHING, "max_steps": 7, "logging_steps": 4}),
    Setting("fractional_epochs", {"num_train_epochs": 1.5, "eval_strategy": "epoch"}),
    Setting("eval_on_start_and_delay", {**EVALUATES, "eval_on_start": True, "eval_delay": 4}),
    Setting("first_step", {"logging_first_step": True, "logging_steps": 4}),
    Setting("best_model", {**EVERYTHING, "load_best_model_at_end": True, "save_total_limit": 1}),
    Setting("save_the_best", {**EVALUATES, "save_strategy": "best", "metric_for_best_model": "mae"}),
    Setting("dict_of_sets", dict(EVALUATES), task=_two_sets()),
    Setting("stop_in_step_end", answer=_at(4, "on_step_end", should_training_stop=True)),
    Setting("stop_in_step_begin", answer=_at(4, "on_step_begin", should_training_stop=True)),
    Setting("stop_in_epoch_begin", answer=_at(3, "on_epoch_begin", should_training_stop=True)),
    Setting("stop_in_epoch_end", answer=_at(6, "on_epoch_end", should_training_stop=True)),
    Setting("stop_in_evaluate", dict(EVALUATES), _at(4, "on_evaluate", should_training_stop=True)),
    Setting("stop_in_log", {"gradient_accumulation_steps": 2}, _at(2, "on_log", should_training_stop=True)),
    Setting("stop_in_substep", {"gradient_accumulation_steps": 2}, _at(1, "on_substep_end", should_training_stop=True)),
    Setting("end_the_epoch", answer=_at(1, "on_step_end", should_epoch_stop=True)),
    Setting(
        "ask_for_all",
        {"logging_steps": 50},
        _at(2, "on_step_end", should_log=True, should_evaluate=True, should_save=True),
    ),
    Setting("refuse_a_save", EVERYTHING, _at(2, "on_step_end", should_save=False, should_evaluate=False)),
    Setting("ask_in_epoch_end", {"logging_steps": 50}, _at(3, "on_epoch_end", should_evaluate=True, should_save=True)),
    Setting("evaluate_and_predict", drive=_evaluate_and_predict),
    Setting("train_then_evaluate", drive=_train_then_evaluate),
    Setting("resume", {**EVERYTHING, "num_train_epochs": 3}, drive=_resume),
)
