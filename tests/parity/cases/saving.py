"""Checkpoints, the best model, and runs that go on from a checkpoint."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from tests.helpers.sides import Side
from tests.parity.harness import Build, Case, Drive, Task
from tests.parity.tasks import (
    EVALUATES,
    LM,
    accuracy,
    classifier,
    language_model,
    mean_error,
    regression,
    with_inputs,
    with_own_optimizer,
)


def saving() -> list[Case]:
    """Checkpoints, the best model, and runs that go on from a checkpoint."""
    best = {
        **EVALUATES,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "num_train_epochs": 4,
    }
    each = {"save_strategy": "steps", "save_steps": 2}
    noisy = {**LM, "gradient_accumulation_steps": 2, **each}
    return [
        Case("best_by_loss", regression(), {**best, "learning_rate": 0.2}, {"load_best_model_at_end": False}),
        Case(
            "best_by_accuracy",
            classifier(0.1, compute_metrics=accuracy),
            {**best, "metric_for_best_model": "accuracy", "learning_rate": 0.05},
            {"load_best_model_at_end": False},
        ),
        Case(
            "save_only_the_best",
            classifier(compute_metrics=accuracy),
            {**EVALUATES, "save_strategy": "best", "metric_for_best_model": "eval_accuracy", "learning_rate": 0.02},
            {"save_strategy": "no"},
        ),
        Case("save_off_the_grid", regression(), {**each, "max_steps": 7, "save_total_limit": 2}, {"max_steps": 8}),
        Case(
            "save_beside_an_earlier_run",
            regression(),
            {**each, "max_steps": 5, "save_total_limit": 4},
            {"save_total_limit": None},
            drive=_train_beside_an_earlier_run,
        ),
        Case("save_by_epoch", regression(), {"save_strategy": "epoch"}, {"save_strategy": "no"}),
        Case(
            "resume_mid_epoch_dropout",
            language_model(0.1),
            {**noisy, **EVALUATES},
            {"seed": 1},
            drive=stop_and_resume(3),
        ),
        Case("resume_at_epoch_end_dropout", regression(0.1), each, {"seed": 1}, drive=stop_and_resume(7)),
        Case(
            "resume_second_epoch_dropout", classifier(0.1), {**each, "seed": 5}, {"seed": 1}, drive=stop_and_resume(9)
        ),
        Case(
            "resume_ignoring_data_skip",
            regression(0.1),
            {**each, "ignore_data_skip": True},
            {"ignore_data_skip": False},
            drive=stop_and_resume(3),
        ),
        Case(
            "resume_inside_a_log_window",
            regression(0.1),
            {**each, "logging_steps": 3},
            {"logging_steps": 1},
            drive=stop_and_resume(5),
        ),
        Case("resume_own_optimizer", with_own_optimizer(), each, {"seed": 1}, drive=stop_and_resume(5)),
        Case("train_twice", regression(0.1), {"num_train_epochs": 1}, {"seed": 1}, drive=_train_twice),
        Case(
            "early_stopping",
            _with_early_stopping(),
            {**best, "learning_rate": 0.3},
            {"metric_for_best_model": "eval_mae"},
        ),
    ]


def stop_and_resume(stop_at: int) -> Drive:
    """The script is killed in update `stop_at`, before that one is saved, and run again from its newest checkpoint."""

    def drive(side: Side, build: Build) -> tuple[Any, Any]:
        class Kill(side.module("trainer_callback").TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == stop_at:
                    raise KeyboardInterrupt

        killed = build()
        killed.add_callback(Kill())
        with contextlib.suppress(KeyboardInterrupt):
            killed.train()
        trainer = build()
        return trainer, trainer.train(resume_from_checkpoint=True)

    return drive


def _train_beside_an_earlier_run(side: Side, build: Build) -> tuple[Any, Any]:
    """Its output folder holds checkpoints of more updates, the one with the smaller number being the younger."""
    trainer = build()
    for hour, step in enumerate((100, 50)):
        folder = Path(trainer.args.output_dir) / f"checkpoint-{step}"
        folder.mkdir()
        os.utime(folder, (3600.0 * hour, 3600.0 * hour))
    return trainer, trainer.train()


def _train_twice(side: Side, build: Build) -> tuple[Any, Any]:
    trainer = build()
    first = trainer.train()
    return trainer, [first, trainer.train()]


def _with_early_stopping() -> Task:
    def inputs(side: Side) -> dict[str, Any]:
        return {"callbacks": [side.api.EarlyStoppingCallback(2, 0.01)], "compute_metrics": mean_error}

    return with_inputs(regression(), inputs)
