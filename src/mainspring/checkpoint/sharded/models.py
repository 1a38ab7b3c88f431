"""A model's state across processes: in shards, whole on the main process, and from there back."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.checkpoint.sharded import wrapped_v1
from mainspring.checkpoint.sharded.folder import load_shards
from mainspring.checkpoint.sharded.metadata import read_metadata
from mainspring.checkpoint.sharded.parameter_names import clean_name
from mainspring.checkpoint.sharded.streaming import entries_of
from mainspring.checkpoint.sharded.whole import Shape, handed_out, is_main, on_main_process, told_by_main_process
from mainspring.checkpoint.weights import LoadReport
from mainspring.errors import CheckpointError

_PART = "model"


def sharded_model_state(model: nn.Module) -> dict[str, Any]:
    """Return the state of a model by its own names, whatever wraps it; sharded tensors stay sharded.

    The tensors are the model's: who fills them fills it. Tied weights have all their names.
    """
    if wrapped_v1.is_wrapped(model):
        return wrapped_v1.sharded_model_state(model)
    return {clean_name(model, name): value for name, value in model.state_dict().items()}


def whole_model_state(model: nn.Module) -> dict[str, Any]:
    """Return the whole state on the CPU of the main process, and an empty dict elsewhere; every process calls it."""
    if wrapped_v1.is_wrapped(model):
        return wrapped_v1.whole_model_state(model)
    state: dict[str, Any] = on_main_process(sharded_model_state(model))
    return state if is_main() else {}


def put_model_state(model: nn.Module, state: dict[str, Any]) -> LoadReport:
    """Give every process its part of the main process's whole state; every process calls it.

    Args:
        model: Its tensors are filled where they are.
        state: Whole tensors by the model's own names; ignored on other processes.

    Returns:
        The names that did not match, on every process.

    Raises:
        CheckpointError: A shape differs, or not one name matches.
    """
    outline = told_by_main_process(state)
    report = _compare(model, outline)
    if wrapped_v1.is_wrapped(model):
        wrapped_v1.put_model_state(model, state)
        return report
    own = sharded_model_state(model)
    known = {name: value for name, value in outline.items() if name in own}
    _check_shapes(own, {name: value.shape for name, value in known.items() if isinstance(value, Shape)})
    filled = handed_out(known, state, lambda path, _: own[path[0]])
    _set_other_values(model, filled)
    return report


def load_model_shards(model: nn.Module, folder: str | os.PathLike[str]) -> LoadReport:
    """Load a model's weights from a folder of shards, on any number of processes; every process calls it.

    Args:
        model: Its tensors are filled where they are.
        folder: The folder with the shards.

    Returns:
        The names that did not match.

    Raises:
        CheckpointError: The folder is damaged or refused, a shape differs, or not one name matches.
    """
    entries = {path[1:]: kind for path, kind in _kinds(folder) if path[0] == _PART}
    there = {".".join(map(str, path)): getattr(kind, "size", None) for path, kind in entries.items()}
    report = _compare(model, there)
    own = sharded_model_state(model)
    wanted = {name: value for name, value in own.items() if name in there}
    if not wrapped_v1.is_wrapped(model):
        _check_shapes(own, {name: size for name, size in there.items() if size is not None and name in own})
    load_shards(folder, {_PART: wanted})
    if wrapped_v1.is_wrapped(model):
        wrapped_v1.put_sharded_model_state(model, wanted)
    else:
        _set_other_values(model, wanted)
    return report


def _kinds(folder: str | os.PathLike[str]) -> list[tuple[tuple[Any, ...], Any]]:
    metadata = read_metadata(folder)
    return [(path, metadata.state_dict_metadata[key]) for key, path in entries_of(metadata).items()]


def _compare(model: nn.Module, there: dict[str, Any]) -> LoadReport:
    own = {clean_name(model, name): value for name, value in model.state_dict(keep_vars=True).items()}
    loaded = {id(own[name]) for name in there if name in own}
    left_out = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    missing = tuple(name for name, value in own.items() if id(value) not in loaded and name not in left_out)
    unexpected = tuple(name for name in there if name not in own)
    if own and there and len(unexpected) == len(there):
        raise CheckpointError(
            f"these are the weights of another model: none of the {len(there)} tensors ({unexpected[0]}, ...) is one of "
            f"{type(model).__name__}'s ({next(iter(own))}, ...)"
        )
    return LoadReport(missing, unexpected)


def _check_shapes(own: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, size in saved.items():
        here = own[name].shape if isinstance(own[name], Tensor) else None
        if here != size:
            raise CheckpointError(
                f"{name} has shape {list(size)} in the checkpoint but {None if here is None else list(here)} here"
            )


@torch.no_grad()
def _set_other_values(model: nn.Module, state: dict[str, Any]) -> None:
    """Hand the model what is no tensor (`get_extra_state`); its tensors are filled."""
    others = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    if others:
        names = {clean_name(model, name): name for name in model.state_dict()}
        model.load_state_dict({names[name]: value for name, value in others.items()}, strict=False)
