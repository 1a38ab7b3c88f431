"""The instants at which runs are killed, one chain after another: each continues what the one before it has left."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.faults.killing import Instant
from tests.faults.runs import ALONE, BACKGROUND, EPOCHS, LARGE, LENGTHS, SAVED_AGAIN, STOPPED, WORKERS, Scenario

RANDOM = "random"
SEED = 20_260_704


def event(name: str, count: int = 1, phase: str | None = None) -> Instant:
    """When the trainer's callbacks are told of something."""
    phases = {"on_prediction_step": "evaluation", "on_evaluate": "evaluation", "on_save": "after a save"}
    edges = {"on_epoch_begin": "epoch edge", "on_epoch_end": "epoch edge", "on_train_end": "end of the run"}
    return Instant(phase or {**phases, **edges}.get(name, "update"), "event", name, count)


def writing(file: str, count: int = 1) -> Instant:
    """When half of a file is written."""
    return Instant("file write", "write", file, count)


def written(file: str, count: int = 1) -> Instant:
    """When a file is complete."""
    return Instant("file write", "written", file, count)


def growing(file: str, size: int) -> Instant:
    """When so many bytes of a file are written."""
    return Instant("file write", "size", file, size)


def filling(file: str, size: int) -> Instant:
    """When at least so many bytes of a file are written that is made in its full size."""
    return Instant("file write", "blocks", file, size)


def renaming(part: str, count: int = 1, phase: str = "rename") -> Instant:
    """Before a rename that has this in one of its names."""
    return Instant(phase, "audit", f"os.rename:{part}", count)


def opening(part: str, count: int = 1) -> Instant:
    """Before a file that has this in its name is opened."""
    return Instant("manifest", "audit", f"open:{part}", count)


def rotating(call: str, count: int = 1) -> Instant:
    """Before a step of a deletion."""
    return Instant("rotation", "audit", call, count)


def at_random(draws: random.Random, kind: str) -> list[Instant]:
    """Anywhere: after any of Python's audit events, any call of a function, or any time.

    A whole run has 2,000 of the events and 380,000 of the calls, and takes about a second.
    """
    largest = {"audit": 1200, "call": 250_000, "time": 600}[kind]
    return [Instant(RANDOM, kind, "", draws.randint(1, largest // divisor)) for divisor in (1, 2, 3)]


def of_the_stop(name: str, count: int = 1) -> Instant:
    """When callbacks are told of something at the update that ends the run early, or after it."""
    return event(name, count, "early stop")


_draws = random.Random(SEED)

CHAINS: list[tuple[Scenario, Sequence[Instant]]] = [
    (ALONE, [event("on_step_begin", 2), event("on_substep_end", 5), event("on_step_end", 7)]),
    (ALONE, [event("on_prediction_step", 1), event("on_prediction_step", 4), event("on_evaluate", 2)]),
    (ALONE, [writing("optimizer.pt"), writing("scheduler.pt", 2), writing("rng_state.pth", 2)]),
    (ALONE, [writing("trainer_state.json"), writing("progress.json", 2), writing("training_args.json", 2)]),
    (ALONE, [opening("manifest"), writing("manifest.json", 2), opening("manifest", 6)]),
    (ALONE, [renaming("partial"), renaming("partial", 2), renaming("partial", 3)]),
    (ALONE, [event("on_save", 1), event("on_save", 2), event("on_train_end")]),
    (ALONE, [rotating("os.rename:deleted"), rotating("shutil.rmtree:deleted"), rotating("os.remove:optimizer.pt")]),
    (ALONE, [event("on_log", 2), event("on_pre_optimizer_step", 4), event("on_optimizer_step", 4)]),
    (ALONE, at_random(_draws, "audit")),
    (ALONE, at_random(_draws, "call")),
    (ALONE, at_random(_draws, "time")),
    (WORKERS, [event("on_step_begin", 3), event("on_evaluate", 2), renaming("partial", 2)]),
    (WORKERS, [event("on_epoch_end", 1), event("on_epoch_begin", 1), writing("optimizer.pt", 2)]),
    (WORKERS, [event("on_substep_end", 4), event("on_save", 2), rotating("shutil.rmtree:deleted")]),
    (EPOCHS, [event("on_epoch_end", 1), event("on_epoch_begin", 2), event("on_epoch_end", 1)]),
    (EPOCHS, [event("on_prediction_step", 2), renaming("partial", 2), event("on_train_end")]),
    (BACKGROUND, [event("on_step_end", 4), writing("optimizer.pt", 2), renaming("partial", 2)]),
    (BACKGROUND, [event("on_save", 2), opening("manifest", 2), event("on_evaluate", 1)]),
    (BACKGROUND, at_random(_draws, "call")),
    (LENGTHS, [event("on_substep_end", 3), event("on_epoch_end", 1), event("on_step_begin", 2)]),
    (LENGTHS, [renaming("partial"), event("on_evaluate", 2), at_random(_draws, "call")[0]]),
    (LARGE, [filling("model.safetensors", 4096), growing("optimizer.pt", 60_000_000), renaming("partial")]),
    (LARGE, [filling("model.safetensors", 10_000_000), growing("optimizer.pt", 100_000_000), event("on_step_end", 5)]),
    (STOPPED, [of_the_stop("on_evaluate", 3), of_the_stop("on_save"), of_the_stop("on_epoch_end")]),
    (STOPPED, [renaming("partial", 3, "early stop"), of_the_stop("on_epoch_end", 1), of_the_stop("on_train_end")]),
    (STOPPED, [of_the_stop("on_log", 6), of_the_stop("on_save", 1), of_the_stop("on_train_end")]),
    (SAVED_AGAIN, [renaming("replaced", phase="replacing"), renaming("partial", 3, "replacing")]),
]
