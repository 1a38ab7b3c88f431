"""What a launch has found out, read back; and the same runs in this one process, without DeepSpeed."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.deepspeed.runs import series, trainer


def found(folder: Path, name: str, work: str = "training", rank: int = 0) -> Any:
    """What a process noted under a name.

    Raises:
        AssertionError: It failed there; the message is its traceback.
    """
    notes: dict[str, Any] = json.loads((folder / f"{work}-{rank}.json").read_text())
    note = notes[name]
    assert not (isinstance(note, dict) and set(note) == {"error"}), note["error"]
    return note


@functools.cache
def _alone(options: str) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(folder, **json.loads(options))
        run.train()
    return series(run)


def alone(**options: Any) -> dict[str, list[float]]:
    """The logged series of one process that holds the whole model."""
    return _alone(json.dumps(options, sort_keys=True))
