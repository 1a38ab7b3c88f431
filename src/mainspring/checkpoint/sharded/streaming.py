"""Reading a folder of shards in one process, without a process group, one whole tensor in memory at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from mainspring.checkpoint.allowed import safe_globals
from mainspring.checkpoint.sharded.metadata import read_metadata
from mainspring.errors import CheckpointError

StrPath = str | os.PathLike[str]


def stream_shards(folder: StrPath, part: str) -> Iterator[tuple[str, Any]]:
    """Yield what a folder of shards holds, each tensor whole and on the CPU.

    Args:
        folder: A folder of `torch.distributed.checkpoint`.
        part: Which of its states: "model" for weights, "optimizer" for an optimizer's.

    Yields:
        Names and values: tensors, numbers, and what else a state holds. In an optimizer's state the name joins what was
        nested, as in "state.layer.weight.exp_avg".

    Raises:
        CheckpointError: The folder is damaged, holds what could execute something, or has no such part.
        OSError: The system would not read it.
    """
    for name, read in shard_readers(folder, part).items():
        yield name, read()


def shard_readers(folder: StrPath, part: str) -> dict[str, Callable[[], Any]]:
    """Return what reads each thing in a folder of shards, by name, once it is called.

    Arguments and errors are those of `stream_shards`.
    """
    metadata = read_metadata(folder)
    names = _names(metadata, part)
    if not names:
        raise CheckpointError(f"{os.fspath(folder)} holds no state of the name {part!r}")
    root = Path(folder)
    return {".".join(map(str, path)): partial(_value, root, metadata, key) for key, path in names.items()}


def whole_shards(folder: StrPath, part: str) -> dict[str, Any]:
    """Return all that a part of a folder of shards holds, nested as it was saved.

    Arguments and errors are those of `stream_shards`.
    """
    metadata = read_metadata(folder)
    state: dict[str, Any] = {}
    for key, path in _names(metadata, part).items():
        put_at(state, path, _value(Path(folder), metadata, key))
    if not state:
        raise CheckpointError(f"{os.fspath(folder)} holds no state of the name {part!r}")
    return state


def entries_of(metadata: Metadata) -> dict[str, tuple[Any, ...]]:
    """Every entry's place among the nested states, by its name in the folder."""
    places = metadata.planner_data or {}
    return {key: tuple(places.get(key, (key,))) for key in metadata.state_dict_metadata}


def put_at(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """Set a value in nested dicts and lists, which are made where they lack; numbers are places in lists."""
    here: Any = state
    for step, following in zip(path, (*path[1:], None), strict=True):
        if isinstance(step, int):
            here.extend([None] * (step + 1 - len(here)))
        if following is None:
            here[step] = value
            return
        inside = here[step] if isinstance(step, int) else here.get(step)
        if inside is None:
            inside = here[step] = [] if isinstance(following, int) else {}
        here = inside


def _names(metadata: Metadata, part: str) -> dict[str, tuple[Any, ...]]:
    return {key: path[1:] for key, path in entries_of(metadata).items() if path[0] == part and len(path) > 1}


def _value(root: Path, metadata: Metadata, key: str) -> Any:
    kind = metadata.state_dict_metadata[key]
    if not isinstance(kind, TensorStorageMetadata):
        return _load(root, metadata, MetadataIndex(key))
    whole = torch.empty(kind.size, dtype=kind.properties.dtype)
    for chunk in kind.chunks:
        region = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        index = MetadataIndex(key, chunk.offsets)
        part = _load(root, metadata, index)
        if getattr(part, "shape", None) != whole[region].shape:
            name = root / metadata.storage_data[index].relative_path
            raise CheckpointError(f"{name} does not hold what the list of shards says it does of {key}")
        whole[region].copy_(part)
    return whole


def _load(root: Path, metadata: Metadata, index: MetadataIndex) -> Any:
    place = metadata.storage_data[index]
    with (root / place.relative_path).open("rb") as file:
        file.seek(place.offset)
        return load_bytes(io.BytesIO(file.read(place.length)), root / place.relative_path)


def load_bytes(stream: io.BytesIO, shard: Path) -> Any:
    """Read what stands at one place of a shard, executing nothing.

    Raises:
        CheckpointError: It is damaged, or holds anything outside the allow-list.
    """
    try:
        with torch.serialization.safe_globals(safe_globals()):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can provoke nearly any of them
        raise CheckpointError(f"{shard} could not be read, and nothing in it was executed: {error}") from error
