"""A user's script, started by no launcher, by one of several, or in a notebook: each run's facts and numbers."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.deepspeed.runs import compile_nothing, config, facts, series, trainer


def one(out: Path, stage: int | None) -> dict[str, Any]:
    """A run; without DeepSpeed where there is no stage."""
    run = trainer(out, **({} if stage is None else {"deepspeed": config(stage)}))
    run.train()
    said = {"wrapper": type(run.model_wrapped).__name__, "engine": run._engine.kind} if stage is None else facts(run)
    return {**series(run), **said, "after": run.evaluate()["eval_loss"]}


def alone(out: Path) -> Any:
    """Plain, divided and plain runs one after the other in one process."""
    return [one(out / str(place), stage) for place, stage in enumerate((None, 2, 3, None, 0, 1))]


def notebook(out: Path) -> Any:
    """A cell that emulates a launcher, then two runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }
    return [one(out / str(stage), stage) for stage in (3, 2)]


def launched(out: Path) -> Any:
    """What the script asks for itself."""
    return one(out, 2)


def silent(out: Path) -> Any:
    """A script that leaves DeepSpeed to the launcher."""
    run = trainer(out)
    run.train()
    return {**series(run), **facts(run)}


MODES: Mapping[str, Callable[[Path], Any]] = {f.__name__: f for f in (alone, notebook, launched, silent)}

if __name__ == "__main__":
    compile_nothing()
    folder = Path(sys.argv[2])
    found = MODES[sys.argv[1]](folder)
    (folder / f"{sys.argv[1]}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
