"""Callbacks and metrics of which one rank's want something else than the others'; each function is the life of a rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mainspring import Trainer, TrainerCallback
from tests.helpers.runs import trainer

WISHES = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
AT = 4
"""The update at which it is wished. An epoch has three updates."""

EVENTS = {
    "on_step_end": {},
    "on_log": {"logging_steps": AT},
    "on_evaluate": {"eval_strategy": "steps", "eval_steps": AT},
}
"""In which event, and what makes it happen at that update."""

BY = ("rank 0", "rank 1", "all")
QUIET = {
    "gradient_accumulation_steps": 1,
    "logging_steps": 500,
    "eval_strategy": "no",
    "save_steps": 500,
}


class Wish(TrainerCallback):
    """Sets a flag, and notes what happens when."""

    def __init__(self, event: str, flag: str, by: str) -> None:
        self.event, self.flag, self.by = event, flag, by
        self.noted: list[tuple[str, int]] = []

    def note(self, event: str, args: Any, state: Any, control: Any) -> None:
        if event != "on_step_end":
            self.noted.append((event, state.global_step))
        is_mine = self.by in ("all", f"rank {args.process_index}")
        if is_mine and (event, state.global_step) == (self.event, AT):
            setattr(control, self.flag, True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("on_step_end", args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("on_log", args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("on_evaluate", args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("on_save", args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.note("on_epoch_end", args, state, control)


class OwnMetric(Trainer):
    """Each rank measures something else: to rank 0 the last checkpoint is the best, to rank 1 the first."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        return {**metrics, "eval_own": self.state.global_step * (1.0 if self.args.process_index == 0 else -1.0)}


class CannotTravelError(Exception):
    """Pickles, but cannot be made again from its message."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def measured(prediction: Any) -> dict[str, float]:
    return {"own": 0.0}


def fails(prediction: Any) -> Any:
    raise CannotTravelError("metric", "no such thing")


def wished(folder: Path, event: str, flag: str, by: str, **options: Any) -> dict[str, Any]:
    """What happened in a run, and how far it came."""
    wish = Wish(event, flag, by)
    run = trainer(folder, callbacks=[wish], **{**QUIET, **EVENTS[event], **options})
    run.train()
    return {"kind": run._engine.kind, "world": run.args.world_size, "step": run.state.global_step, "noted": wish.noted}


def best(folder: Path) -> dict[str, Any]:
    """The best checkpoint, and the sum of the weights in the end."""
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    run = trainer(
        folder, **{**QUIET, **every, "metric_for_best_model": "own", "greater_is_better": True}, metric=measured
    )
    run.__class__ = OwnMetric
    run.train()
    total = sum(parameter.detach().double().sum().item() for parameter in run.model.parameters())
    return {"best": Path(run.state.best_model_checkpoint or "").name, "weights": total}


def failing(folder: Path) -> list[str]:
    """The error of a metric, as this rank is told it."""
    run = trainer(folder, **QUIET, metric=fails)
    try:
        run.evaluate()
    except Exception as error:  # noqa: BLE001 - what it was is the result
        return [type(error).__name__, str(error)]
    return []


def collect(folder: Path) -> None:
    """Write `rank<r>.json`: what this rank saw in all cases."""
    found: dict[str, Any] = {}
    for event in EVENTS:
        for flag in WISHES:
            for by in BY:
                found[f"{event} {flag} {by}"] = wished(folder / event / flag / by.replace(" ", ""), event, flag, by)
    found["best"] = best(folder / "best")
    found["failing"] = failing(folder / "failing")
    rank = trainer(folder / "rank", **QUIET).args.process_index
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
