"""What a launch has found out, read back; and the same runs in this one process."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.distributed.fsdp_runs import logged, trainer

TOLERANCE = 2e-5
"""Sums over parts are rounded otherwise than sums over the whole: a few units in the last place per update."""


def found(folder: Path, name: str, work: str = "two", rank: int = 0) -> Any:
    """What a process noted under a name.

    Raises:
        AssertionError: It failed there; the message is its traceback.
    """
    notes: dict[str, Any] = json.loads((folder / f"{work}-{rank}.json").read_text())
    note = notes[name]
    assert not (isinstance(note, dict) and set(note) == {"error"}), note["error"]
    return note


def weights_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The whole weights that a run ended with."""
    state: dict[str, torch.Tensor] = torch.load(folder / f"{name}.pt", weights_only=True)
    return state


@functools.cache
def _alone(options: str) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(folder, **json.loads(options))
        run.train()
    return {key: logged(run, key) for key in ("loss", "grad_norm")}, run.model.state_dict()


def alone(**options: Any) -> dict[str, list[float]]:
    """The logged series of one process that holds the whole model."""
    return _alone(json.dumps(options))[0]


def weights_alone(**options: Any) -> dict[str, torch.Tensor]:
    """What it ends with."""
    return _alone(json.dumps(options))[1]


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The greatest difference between two models."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
