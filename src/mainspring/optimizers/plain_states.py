"""Optimizer states as numbers, texts and tensors, where a library keeps objects that a checkpoint does not hold.

Checkpoints are read without executing anything, so a state that is an object of a library's class would be refused; and
a state that is filed under a parameter itself would not be found again. Both are put into plain form when the state
dict is made, and taken out of it when one is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_CLASS = "projector_class"

PROJECTORS = (
    "galore_torch.galore_projector:GaLoreProjector",
    "galore_torch.galore_projector_tensor:GaLoreProjectorTensor",
    "apollo_torch.random_projector:GradientProjector",
    "apollo_torch.svd_projector:GaLoreProjector",
)
"""What low-rank optimizers keep beside their moments. A file names one of these, and nothing else is imported for it."""


def keep_plain(optimizer: Optimizer) -> Optimizer:
    """Have the state dict of `optimizer` hold plain values, and return it."""
    library = type(optimizer).__module__.partition(".")[0]
    if library in ("galore_torch", "apollo_torch"):
        optimizer.register_state_dict_post_hook(_without_projectors)
        optimizer.register_load_state_dict_pre_hook(_with_projectors)
    elif library == "grokadamw":
        optimizer.register_state_dict_post_hook(_states_by_number)
        optimizer.register_load_state_dict_post_hook(_states_by_parameter)
    return optimizer


# GaLore and APOLLO: how gradients are projected is an object -------------------------------------------------------


def _without_projectors(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    saved["state"] = {
        number: {key: _as_dict(value) if _path(value) in PROJECTORS else value for key, value in state.items()}
        for number, state in saved["state"].items()
    }


def _with_projectors(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    devices = {number: parameter.device for number, parameter in _numbered(optimizer, saved)}
    saved["state"] = {
        number: {key: _as_projector(value, devices.get(number)) for key, value in state.items()}
        for number, state in saved["state"].items()
    }


def _path(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _as_dict(projector: Any) -> dict[str, Any]:
    return {_CLASS: _path(projector), **vars(projector)}


def _as_projector(value: Any, device: torch.device | None) -> Any:
    if not isinstance(value, dict) or value.get(_CLASS) not in PROJECTORS:
        return value
    module, _, name = value[_CLASS].partition(":")
    cls = getattr(import_module(module), name)
    projector = cls.__new__(cls)
    vars(projector).update({key: _moved(part, device) for key, part in value.items() if key != _CLASS})
    return projector


def _moved(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, list):
        return [_moved(part, device) for part in value]
    return value.to(device) if isinstance(value, Tensor) else value


# GrokAdamW: states lie in the groups, under the parameters themselves -----------------------------------------------


def _states_by_number(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    for group, live in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        states = group.pop("state", {})
        for number, parameter in zip(group["params"], live["params"], strict=True):
            if parameter in states:
                saved["state"][number] = states[parameter]


def _states_by_parameter(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group["state"] = {p: optimizer.state.pop(p) for p in group["params"] if p in optimizer.state}


def _numbered(optimizer: Optimizer, saved: dict[str, Any]) -> Iterator[tuple[int, Tensor]]:
    for group, live in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        yield from zip(group["params"], live["params"], strict=False)
