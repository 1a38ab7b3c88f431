"""Optimizer, scheduler, scaler and random states: written with `torch.save`, read without executing anything."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mainspring.checkpoint.allowed import safe_globals, torch_globals
from mainspring.checkpoint.deferral import write
from mainspring.checkpoint.pickles import Rules, dangers_of_own, examine
from mainspring.errors import CheckpointError


def save_torch(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write `obj` (tensors in plain containers, numbers, strings) with `torch.save`; inside `deferred`, a copy, later.

    Args:
        obj: A state dict or the like.
        path: The file.

    Raises:
        CheckpointError: It holds something that `load_torch` would refuse, which the message names.
        OSError: The disk is full, or refuses the write for another reason.
    """
    file = os.path.abspath(path)
    write(lambda state: _save(state, file), obj)


def load_torch(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """Read a file of `save_torch`, or the reference's, with `weights_only=True`: never executing what it holds.

    Beyond tensors and plain containers only numpy's numbers, texts, and arrays of them are allowed.

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
        with torch.serialization.safe_globals(safe_globals()):
            return torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist") from None
    except Exception as error:  # a damaged file can provoke nearly any of them
        raise CheckpointError(f"{file} {_reason(error)}") from error


def _save(obj: Any, file: str) -> None:
    # Through a file of Python's: torch's own hides why a write failed. It is not slower.
    with open(file, "wb") as stream:
        torch.save(obj, stream)
    if dangers := dangers_of_own(file):
        raise CheckpointError(_would_be_refused(obj, file, dangers))


def _would_be_refused(obj: Any, file: str, dangers: list[str]) -> str:
    name = os.path.basename(file)
    found = next(((place, value) for place, value in _leaves(obj, name) if _dangers_of(value)), None)
    where = (
        "" if found is None else f": {found[0]} is of type {type(found[1]).__module__}.{type(found[1]).__qualname__}"
    )
    return (
        f"{name} could not be read again{where}; that needs {', '.join(dangers)}, which is not in the allow-list of a "
        f"checkpoint. Keep it as numbers, texts, tensors, or lists and dicts of them; or allow the type, in every run, with "
        f"torch.serialization.add_safe_globals"
    )


def _leaves(state: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What a state holds and where, without tensors: `optimizer.pt["state"][0]["ema"]`."""
    if type(state) in (dict, list, tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _leaves(key, f"a key of {place}")
            yield from _leaves(value, f"{place}[{key!r}]")
    elif type(state) not in (torch.Tensor, torch.nn.Parameter, int, str):
        yield place, state


def _dangers_of(value: Any) -> list[str]:
    stream = io.BytesIO()
    torch.save(value, stream)
    return examine(stream, Rules(torch_globals()))


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
