"""A folder of weights: one file, or several and an index of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.export.files import size_in, write_safetensors
from mainspring.checkpoint.export.sources import Weights
from mainspring.checkpoint.names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)
from mainspring.checkpoint.stored import Stored

_SHARD_NAME = "model-{:05d}-of-{:05d}.safetensors"


def write_model(stage: Path, weights: Weights, dtype: torch.dtype | None, max_shard_size: int) -> None:
    """Write a model's weights into a folder, as transformers names and divides them.

    Args:
        stage: The folder.
        weights: What to write.
        dtype: The type of floating-point numbers; None: as they are.
        max_shard_size: How many bytes of numbers a file may hold; a larger tensor has one of its own.
    """
    shards = divided(weights.tensors, dtype, max_shard_size)
    if len(shards) == 1:
        write_safetensors(stage / SAFE_WEIGHTS_NAME, weights.tensors, weights.aliases, dtype)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = _SHARD_NAME.format(number, len(shards))
        here = {name: weights.tensors[name] for name in names}
        aliases = {name: to for name, to in weights.aliases.items() if to in here}
        write_safetensors(stage / file, here, aliases, dtype)
        places |= dict.fromkeys(names, file)
    total = sum(size_in(value, dtype) for value in weights.tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (stage / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_adapter(stage: Path, weights: Weights, contents: Contents, dtype: torch.dtype | None) -> None:
    """Write an adapter's weights, which are never divided, and its configuration."""
    folder = stage / weights.folder
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / ADAPTER_SAFE_WEIGHTS_NAME, weights.tensors, weights.aliases, dtype)
    shutil.copyfile(contents.root / weights.folder / ADAPTER_CONFIG_NAME, folder / ADAPTER_CONFIG_NAME)


def divided(tensors: Mapping[str, Stored], dtype: torch.dtype | None, limit: int) -> list[list[str]]:
    """Return the names for each file, in order, filled up one after the other."""
    shards: list[list[str]] = [[]]
    left = limit
    for name, value in tensors.items():
        size = size_in(value, dtype)
        if size > left and shards[-1]:
            shards.append([])
            left = limit
        shards[-1].append(name)
        left -= size
    return shards
