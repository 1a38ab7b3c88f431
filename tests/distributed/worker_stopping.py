"""Stop, save and resume on this process of several, and write down what each scenario came to.

`stop FOLDER` lets a request to stop end the processes, and `fail FOLDER` an error in one of them, as in a user's script.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mainspring import Trainer, TrainerCallback, checkpoint
from tests.helpers.checkpoints import flip
from tests.helpers.runs import history, trainer

RANK = int(os.environ.get("RANK", "0"))

STOPS: dict[str, tuple[str, int, int, int]] = {
    "first update": ("on_step_begin", 1, 1, 2),
    "update": ("on_substep_end", 4, 1, 4),
    "update of the main process": ("on_substep_end", 4, 0, 4),
    "first evaluation": ("on_prediction_step", 1, 1, 2),
    "last batch of an evaluation": ("on_prediction_step", 5, 1, 2),
    "batch of the main process": ("on_prediction_step", 2, 0, 2),
    "epoch": ("on_epoch_end", 1, 1, 4),
    "last update": ("on_step_end", 9, 1, 9),
    "end of the last epoch": ("on_epoch_end", 3, 1, 9),
}
"""Where one process is asked: the event and its how-manieth time, the rank, and the step at which all have stopped."""


def build(folder: Path, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    """Three updates in each of three epochs; the last of an epoch is a short one."""
    common = {"rows": 44, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 1, "save_steps": 500}
    run = trainer(folder, **{**common, **options})
    run.__class__ = kind
    return run


class Ask(TrainerCallback):
    """SIGTERM in one process alone."""

    def __init__(self, event: str, count: int, rank: int) -> None:
        self.left, self.rank = count, rank
        setattr(self, event, self.happen)

    def happen(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if not self.left and args.process_index == self.rank:
            signal.raise_signal(signal.SIGTERM)


class Saves(TrainerCallback):
    """Remembers the checkpoints that it is told of, and whether they are in place then."""

    def __init__(self) -> None:
        self.told: list[tuple[int, bool]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.told.append((state.global_step, folder.is_dir()))


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class NoRoomForRandomStates(Trainer):
    """Rank 1 cannot write its file of the second update's checkpoint."""

    def _save_rng_state(self, output_dir: str) -> None:
        if self.state.global_step == 2 and RANK == 1:
            raise no_space()
        super()._save_rng_state(output_dir)


class NoRoomForModel(Trainer):
    """Rank 0 cannot write the weights of the second update's checkpoint."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.state.global_step == 2 and RANK == 0:
            raise no_space()
        super().save_model(output_dir, _internal_call)


@contextlib.contextmanager
def commit_fails(step: int) -> Iterator[None]:
    """Rank 0 cannot put the checkpoint of `step` in place."""
    original = checkpoint.Stage.commit

    def commit(stage: checkpoint.Stage, facts: Any = None) -> None:
        if stage.target.name == f"checkpoint-{step}":
            raise no_space()
        original(stage, facts)

    with mock.patch.object(checkpoint.Stage, "commit", commit):
        yield


def outcome(run: Trainer, error: BaseException | None = None) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, tensor in sorted(run.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return {
        "error": "" if error is None else type(error).__name__,
        "message": "" if error is None else str(error),
        "step": run.state.global_step,
        "weights": digest.hexdigest(),
        "history": history(run),
        "failures": run._saver.failures,
        "checkpoints": sorted(path.name for path in Path(run.args.output_dir).glob("checkpoint-*")),
    }


def attempt(run: Trainer, **options: Any) -> dict[str, Any]:
    """Train, and note how that ended."""
    try:
        run.train(**options)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - what it was is the result
        return outcome(run, error)
    return outcome(run)


def stopped_and_continued(folder: Path, **options: Any) -> dict[str, Any]:
    stopped = attempt(build(folder, **options))
    return {"stopped": stopped, "continued": attempt(build(folder), resume_from_checkpoint=True)}


def out_of_time(folder: Path) -> dict[str, Any]:
    """The time of rank 1 is up at once; that of rank 0 never is."""
    return stopped_and_continued(folder, max_time=0.001 if RANK == 1 else 3600)


def failing(folder: Path, kind: type[Trainer] = Trainer, **options: Any) -> dict[str, Any]:
    saves = Saves()
    run = build(folder, kind, save_steps=2, callbacks=[saves], **options)
    return {"run": attempt(run), "told": saves.told}


def failing_commit(folder: Path, **options: Any) -> dict[str, Any]:
    with commit_fails(2):
        return failing(folder, **options)


def in_background(folder: Path) -> dict[str, Any]:
    saves = Saves()
    run = attempt(build(folder, save_steps=2, save_in_background=True, callbacks=[saves]))
    again = build(folder / "again", save_in_background=True)
    resumed = attempt(again, resume_from_checkpoint=str(folder / "checkpoint-4"))
    return {"run": run, "told": saves.told, "resumed": resumed}


class StartedAt(TrainerCallback):
    """Remembers the step that a run begins at."""

    step = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step


def damaged(folder: Path) -> dict[str, Any]:
    """The newest checkpoint has a flipped bit."""
    first = build(folder, save_steps=2)
    attempt(first)
    if RANK == 0:
        flip(folder / "checkpoint-9/model.safetensors", -100)
    first._engine.barrier()
    start = StartedAt()
    resumed = attempt(build(folder, callbacks=[start]), resume_from_checkpoint="auto")
    return {"run": resumed, "start": start.step}


def locked_out(folder: Path) -> dict[str, Any]:
    """Another run works in the folder."""
    with checkpoint.locked(folder) if RANK == 0 else contextlib.nullcontext():
        refused = attempt(build(folder))
    return {"refused": refused, "run": attempt(build(folder, max_steps=1))}


class FailAt(TrainerCallback):
    """A mistake in one process alone."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and RANK == 0:
            raise ZeroDivisionError("a mistake")


def one_process_fails(folder: Path) -> None:
    """With a save of the background in flight, and every other exception saved: nobody waits for the others."""
    build(folder, save_steps=3, save_in_background=True, save_on_exception=True, callbacks=[FailAt()]).train()


def main(out: Path) -> None:
    """Write `rank<r>.json`: what each scenario came to on this process."""
    results: dict[str, Any] = {"whole": attempt(build(out / "whole", save_steps=2))}
    for name, (event, count, rank, _) in STOPS.items():
        results[name] = stopped_and_continued(out / name, callbacks=[Ask(event, count, rank)])
    results["out of time"] = out_of_time(out / "out of time")
    results["random states"] = failing(out / "random states", NoRoomForRandomStates)
    results["model"] = failing(out / "model", NoRoomForModel)
    results["commit"] = failing_commit(out / "commit")
    results["commit in the background"] = failing_commit(out / "commit in the background", save_in_background=True)
    results["raised"] = failing(out / "raised", NoRoomForRandomStates, save_failure="raise")
    results["background"] = in_background(out / "background")
    results["damaged"] = damaged(out / "damaged")
    results["locked"] = locked_out(out / "locked")
    (out / f"rank{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1] == "stop":
        build(Path(sys.argv[2]), callbacks=[Ask("on_step_end", 4, 1)]).train()
    elif sys.argv[1] == "fail":
        one_process_fails(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
