"""The pickles inside the shards of a distributed checkpoint of torch, which stand where its metadata says."""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mainspring.checkpoint.allowed import metadata_globals, torch_globals
from mainspring.checkpoint.pickles import Rules, examine, refuse


class _MetadataUnpickler(pickle.Unpickler):
    """Finds nothing but what metadata needs."""

    def find_class(self, module: str, name: str, /) -> Any:
        if f"{module}.{name}" not in metadata_globals():
            raise pickle.UnpicklingError(f"{module}.{name} is not metadata")
        return super().find_class(module, name)


def unpickle_metadata(file: Path) -> Any:
    """Return what a metadata file holds, made of metadata's own classes and nothing else; damage raises nearly anything."""
    return _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()


def dangerous_shards(metadata: Path) -> list[tuple[Path, list[str]]]:
    """Follow the pickles in the shards that torch would unpickle: all entries but tensors, which it loads with care itself.

    Args:
        metadata: The metadata file; the shards lie beside it.

    Returns:
        Each file with what it holds that is not allowed (see `dangerous_globals`), the metadata for what it says itself.

    Raises:
        CheckpointError: The metadata itself is refused.
    """
    refuse(metadata)
    try:
        content = unpickle_metadata(metadata)
        return _judge(metadata, dict(content.state_dict_metadata), dict(content.storage_data))
    except Exception as error:  # noqa: BLE001 (metadata of another make can provoke nearly any of them)
        return [(metadata, [f"what is no metadata ({type(error).__name__}: {error})"])]


def _judge(metadata: Path, kinds: dict[Any, Any], places: dict[Any, Any]) -> list[tuple[Path, list[str]]]:
    found: dict[Path, list[str]] = defaultdict(list)
    rules = Rules(torch_globals())
    for index, place in places.items():
        if isinstance(kinds.get(index.fqn), TensorStorageMetadata):
            continue
        if place.transform_descriptors or Path(place.relative_path).name != place.relative_path:
            found[metadata].append(f"an entry that is not to be had beside it as it is ({index.fqn})")
            continue
        shard = metadata.parent / place.relative_path
        with shard.open("rb") as file:
            file.seek(place.offset)
            data = file.read(place.length)
        found[shard] += examine(io.BytesIO(data), rules) if data else []
    return [(file, list(dict.fromkeys(dangers))) for file, dangers in found.items()]
