"""Optimizer, scheduler, scaler and random states: written with `torch.save`, read without executing anything."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from mainspring.checkpoint.deferral import write
from mainspring.errors import CheckpointError
from mainspring.seeding import RNG_SAFE_GLOBALS


def save_torch(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write `obj` (tensors in plain containers, numbers, strings) with `torch.save`; inside `deferred`, a copy, later.

    Args:
        obj: A state dict or the like.
        path: The file.

    Raises:
        OSError: The disk is full, or refuses the write for another reason.
    """
    file = os.path.abspath(path)
    write(lambda state: _save(state, file), obj)


def load_torch(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """Read a file of `save_torch`, or the reference's, with `weights_only=True`: never executing what it holds.

    Beyond tensors and plain containers only the pieces of numpy's random state are allowed.

    Args:
        path: The file.
        map_location: Where the tensors go, as in `torch.load`; default the CPU.

    Returns:
        The object.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it holds anything outside the allow-list.
    """
    file = Path(path)
    try:
        with torch.serialization.safe_globals(list(RNG_SAFE_GLOBALS)):
            return torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist") from None
    except Exception as error:  # a damaged file can provoke nearly any of them
        raise CheckpointError(f"{file} {_reason(error)}") from error


def _save(obj: Any, file: str) -> None:
    # Through a file of Python's: torch's own hides why a write failed. It is not slower.
    with open(file, "wb") as stream:
        torch.save(obj, stream)


def _reason(error: Exception) -> str:
    """Say in one line why a file was not loaded; torch's own text is long, and advises to load it all the same."""
    text = str(error).strip()
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named:
        return (
            f"was refused, and nothing in it was executed: it refers to {named[1]}, which is not in the allow-list of a "
            f"checkpoint; if your own optimizer or scheduler keeps it in its state, allow it with "
            f"torch.serialization.add_safe_globals"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "was refused, and nothing in it was executed: it is a pickle that torch.save does not write"
    why = text.splitlines()[0] if text else "it ends too early"
    return f"could not be read, and nothing in it was executed: {type(error).__name__}: {why}"
