"""The adapters of a model (PEFT): where a checkpoint holds them, and how they get back into the model."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.names import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME
from mainspring.checkpoint.torch_files import load_torch
from mainspring.errors import CheckpointError
from mainspring.model import base_of_peft, is_peft

# What peft puts before the names of the wrapped model's tensors, in its files also where nothing is wrapped.
_PEFT_PREFIX = "base_model.model."
# The module that peft imports for layers of Megatron unless an adapter's configuration names another.
_MEGATRON = "megatron.core"


def has_adapters(model: nn.Module) -> bool:
    """Whether a model saves its adapters alone: a PEFT model, or one that transformers' `add_adapter` put some into."""
    return is_peft(model) or bool(getattr(model, "_hf_peft_config_loaded", False))


def adapter_folders(model: Any, contents: Contents) -> dict[str, Contents]:
    """Return the adapters in a checkpoint by name: one at the top, every other in a folder of its name.

    Args:
        model: The model they are for (see `has_adapters`).
        contents: The checkpoint.

    Returns:
        Name to its files; empty where there are none. The one at the top is "default" where the model has that, or where
        there are others beside it, else the model's active one.
    """
    named = {name: below for name in contents.folders() if _has_weights(below := contents.below(name))}
    if not _has_weights(contents):
        return named
    top = "default" if named or "default" in model.peft_config else _active(model)
    return {top: contents, **named}


def describe_adapters(model: Any, folder: str | os.PathLike[str]) -> None:
    """Write the configurations of a PEFT model's adapters to where `adapter_folders` looks for their weights."""
    base = getattr(base_of_peft(model), "name_or_path", None)
    for name, config in model.peft_config.items():
        described = copy.copy(config)
        described.inference_mode = True  # as peft saves it: who loads an adapter may only want to use it
        described.base_model_name_or_path = config.base_model_name_or_path or base or None
        described.save_pretrained(os.path.join(folder, "" if name == "default" else name))


def load_adapters(model: Any, folders: Mapping[str, Contents]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Load adapters into a model; which one is active, what is trainable, modes and dtypes stay.

    Args:
        model: The model (see `has_adapters`). An adapter it does not have yet is added to a PEFT model.
        folders: Name to files, as from `adapter_folders`.

    Returns:
        The names of tensors that were missing, and of those that were unexpected.

    Raises:
        CheckpointError: An adapter is damaged, refused, or of another shape; or a file that the checkpoint does not list
            stands in the way of one that it does.
    """
    missing: list[str] = []
    unexpected: list[str] = []
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    active = _active(model)
    for name, contents in folders.items():
        folder = contents.root
        _check_weights(contents)
        if is_peft(model) and name not in model.peft_config:
            _check_config(contents)
        try:
            result = _load_wrapped(model, name, folder) if is_peft(model) else _load_in_place(model, name, folder)
        except (RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the adapter {name!r} in {folder} does not fit the model: {reason}") from error
        missing += result[0]
        unexpected += result[1]
    if _active(model) != active:
        model.set_adapter(active)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable.get(name, parameter.requires_grad))
    return tuple(missing), tuple(unexpected)


def _load_wrapped(model: Any, name: str, folder: Path) -> tuple[list[str], list[str]]:
    # Trainable, because anything else puts the whole model into evaluation mode; uncast, to keep the dtypes.
    result = model.load_adapter(str(folder), name, is_trainable=True, autocast_adapter_dtype=False)
    return result.missing_keys, result.unexpected_keys


def _load_in_place(model: Any, name: str, folder: Path) -> tuple[list[str], list[str]]:
    # transformers' own load_adapter refuses a name that exists.
    from peft import load_peft_weights, set_peft_model_state_dict

    if name not in model.peft_config:
        return [], [name]
    stored = {key.removeprefix(_PEFT_PREFIX): value for key, value in load_peft_weights(str(folder), "cpu").items()}
    result: Any = set_peft_model_state_dict(model, stored, adapter_name=name)
    lacking = [key for key in result.missing_keys if f".{name}." in key]  # the rest is the frozen model
    return lacking, result.unexpected_keys


def _active(model: Any) -> str:
    names = model.active_adapters
    first: str = (names() if callable(names) else names)[0]
    return first


def _has_weights(contents: Contents) -> bool:
    return any(contents.file(name) is not None for name in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME))


def _check_weights(contents: Contents) -> None:
    """Judge by our rules, before peft opens it, the file that it would choose in a folder."""
    if contents.file(ADAPTER_SAFE_WEIGHTS_NAME) is not None:
        return
    stranger = contents.root / ADAPTER_SAFE_WEIGHTS_NAME
    if stranger.exists():
        raise CheckpointError(f"{stranger} is not one of the checkpoint's files, and would be read: move it elsewhere")
    load_torch(contents.root / ADAPTER_WEIGHTS_NAME)


def _check_config(contents: Contents) -> None:
    """Refuse what would have peft import a module that the checkpoint chooses."""
    file = contents.file(ADAPTER_CONFIG_NAME)
    if file is None:
        raise CheckpointError(f"{contents.root} has no {ADAPTER_CONFIG_NAME} of its own: its adapter cannot be added")
    try:
        module = json.loads(file.read_text(encoding="utf-8")).get("megatron_core")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a JSON object: {error}") from error
    if module not in (None, _MEGATRON):
        raise CheckpointError(
            f"{file} was refused: its megatron_core, {module!r}, would be imported; only {_MEGATRON!r} is. Add the adapter to "
            f"the model before it is loaded, if that is the module of your own megatron"
        )
