"""An optimizer's state across processes, by the names of the model's parameters instead of their numbers.

Names hold on every number of processes and in any order of the parameters. Nothing here runs a step to make a state where
there is none, as torch's helpers do: what was saved says what there is to be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mainspring.checkpoint.optimizer_files import is_numbered
from mainspring.checkpoint.sharded import wrapped_v1
from mainspring.checkpoint.sharded.folder import load_shards
from mainspring.checkpoint.sharded.metadata import read_metadata
from mainspring.checkpoint.sharded.parameter_names import by_names, own_names
from mainspring.checkpoint.sharded.streaming import entries_of, put_at
from mainspring.checkpoint.sharded.whole import handed_out, is_main, on_main_process, told_by_main_process
from mainspring.errors import CheckpointError

if TYPE_CHECKING:
    from torch.optim import Optimizer

_PART = "optimizer"


def sharded_optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer by the names of its parameters; sharded tensors stay sharded.

    Args:
        model: Whose parameters it steps.
        optimizer: The optimizer, or what wraps it.

    Returns:
        `{"state": {name: {...}}, "param_groups": [{..., "params": [names]}]}`.
    """
    if wrapped_v1.is_wrapped(model):
        return wrapped_v1.sharded_optimizer_state(model, optimizer)
    return by_names(model, optimizer, optimizer.state_dict())


def whole_optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return that state with whole tensors on the CPU of the main process, {} elsewhere; every process calls it."""
    if wrapped_v1.is_wrapped(model):
        return wrapped_v1.whole_optimizer_state(model, optimizer)
    state: dict[str, Any] = on_main_process(sharded_optimizer_state(model, optimizer))
    return state if is_main() else {}


def put_optimizer_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give every process's optimizer its part of the main process's whole state; every process calls it.

    Args:
        model: Whose parameters it steps.
        optimizer: The optimizer.
        state: From `whole_optimizer_state`, or from the `state_dict` of an optimizer that steps the same parameters in the
            same groups in one process, which numbers them; ignored on other processes.

    Raises:
        CheckpointError: It is the state of other parameters.
    """
    if wrapped_v1.is_wrapped(model):
        wrapped_v1.put_optimizer_state(model, optimizer, state)
        return
    if is_main():
        state = by_names(model, optimizer, state)
    outline = told_by_main_process(state)
    parameters = _parameters(model, optimizer)
    _refuse_others(outline, parameters)
    outline["state"] = {name: value for name, value in outline["state"].items() if name in parameters}
    filled = handed_out(outline, state, lambda path, shape: _place_for(path, shape.shape, shape.dtype, parameters))
    _load(optimizer, filled, list(parameters))


def load_optimizer_shards(model: nn.Module, optimizer: Optimizer, folder: str | os.PathLike[str]) -> None:
    """Load an optimizer's state from a folder of shards, on any number of processes; every process calls it.

    Args:
        model: Whose parameters it steps.
        optimizer: The optimizer; it need not have any state yet.
        folder: The folder with the shards.

    Raises:
        CheckpointError: The folder is damaged or refused, or holds the state of other parameters.
    """
    if wrapped_v1.is_wrapped(model):
        wrapped = {_PART: wrapped_v1.sharded_optimizer_state(model, optimizer)}
        load_shards(folder, wrapped)
        wrapped_v1.put_sharded_optimizer_state(model, optimizer, wrapped[_PART])
        return
    parameters = _parameters(model, optimizer)
    state = _blank(folder, parameters)
    load_shards(folder, state)
    _refuse_others(state[_PART], parameters)
    _load(optimizer, state[_PART], list(parameters))


def load_named_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state, by names or by numbers, into an optimizer whose state is whole too; nobody waits for anybody.

    Raises:
        CheckpointError: It is the state of other parameters.
    """
    if is_numbered(state):
        optimizer.load_state_dict(state)
        return
    parameters = _parameters(model, optimizer)
    _refuse_others(state, parameters)
    _load(optimizer, state, list(parameters))


def _refuse_others(state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
    """Refuse a state that was saved without a parameter that is stepped here."""
    saved = {name for group in state["param_groups"] for name in group["params"]}
    lacking = [name for name in parameters if name not in saved]
    if lacking:
        raise CheckpointError(
            f"the optimizer's state was saved for {len(saved)} parameters, without {lacking[0]}"
            + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else "")
            + ": what is trained has changed"
        )


def _parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return dict(zip(own_names(model, optimizer), own, strict=True))


# ---- destinations ----


def _place_for(path: tuple[Any, ...], size: Any, dtype: torch.dtype, parameters: Mapping[str, Tensor]) -> Tensor:
    """A tensor for what stands at a path: sharded as its parameter is, where it has the parameter's shape."""
    parameter = parameters.get(path[1]) if path[0] == "state" else None
    if parameter is not None and parameter.shape == size:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(size, dtype=dtype)


def _blank(folder: str | os.PathLike[str], parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """A state as the folder's, to be filled."""
    metadata = read_metadata(folder)
    state: dict[str, Any] = {_PART: {"state": {}}}
    for key, path in entries_of(metadata).items():
        if path[0] != _PART or (path[1] == "state" and path[2] not in parameters):
            continue
        kind = metadata.state_dict_metadata[key]
        if isinstance(kind, TensorStorageMetadata):
            put_at(state, path, _place_for(path[1:], kind.size, kind.properties.dtype, parameters))
        else:
            put_at(state, path, None)
    if "param_groups" not in state[_PART]:
        raise CheckpointError(f"{os.fspath(folder)} holds no optimizer's state")
    return state


def _load(optimizer: Optimizer, state: dict[str, Any], names: list[str]) -> None:
    """Hand the optimizer a state by names, in its own order and groups."""
    number = {name: place for place, name in enumerate(names)}
    saved = {name: group for group in state["param_groups"] for name in group["params"]}
    groups, begin = [], 0
    for group in optimizer.param_groups:
        own = names[begin : begin + len(group["params"])]
        begin += len(own)
        source = saved[own[0]] if own else group
        groups.append({**source, "params": [number[name] for name in own]})
    values = {number[name]: value for name, value in state["state"].items() if name in number}
    optimizer.load_state_dict({"state": values, "param_groups": groups})
