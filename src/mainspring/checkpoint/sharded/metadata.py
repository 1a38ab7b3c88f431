"""The metadata of a folder of shards: a pickle, followed opcode by opcode before anything is made of it."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from mainspring.checkpoint.pickles import METADATA_SUFFIX, refuse
from mainspring.checkpoint.shards import unpickle_metadata
from mainspring.errors import CheckpointError

StrPath = str | os.PathLike[str]


def read_metadata(folder: StrPath) -> Metadata:
    """Return what a folder of shards says of itself, once everything that it points at is known to be there.

    Args:
        folder: A folder of `torch.distributed.checkpoint`.

    Raises:
        CheckpointError: It has none, or one that is refused or damaged; a shard is missing or shorter than it was.
        OSError: The system would not read it.
    """
    root = Path(folder)
    file = root / METADATA_SUFFIX
    if not file.is_file():
        raise CheckpointError(f"{root} holds no shards: {METADATA_SUFFIX} is missing")
    refuse(file)
    try:
        metadata: Metadata = unpickle_metadata(file)
        _refuse_gaps(metadata)
        needed = _extents(metadata)
    except OSError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{file} {error}") from None
    except Exception as error:  # metadata of another make can provoke nearly any of them
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    for name, end in needed.items():
        if reason := _damage(root / name, end):
            raise CheckpointError(f"{root / name} {reason}")
    return metadata


def _refuse_gaps(metadata: Metadata) -> None:
    """Refuse an entry that is not there in full: what no shard holds would keep any value, and nobody would be told."""
    places = metadata.storage_data or {}
    for name, kind in metadata.state_dict_metadata.items():
        parts = [MetadataIndex(name)]
        if isinstance(kind, TensorStorageMetadata):
            parts = [MetadataIndex(name, chunk.offsets) for chunk in kind.chunks]
            if sum(prod(chunk.sizes) for chunk in kind.chunks) < prod(kind.size):
                raise CheckpointError(f"has parts of {name} only")
        if any(part not in places for part in parts):
            raise CheckpointError(f"does not say where {name} is")


def _extents(metadata: Metadata) -> dict[str, int]:
    """How long each shard is at least."""
    ends: dict[str, int] = {}
    for index, place in (metadata.storage_data or {}).items():
        name = place.relative_path
        outside = Path(name).name != name or min(place.offset, place.length) < 0
        if getattr(place, "transform_descriptors", None) or outside:
            raise CheckpointError(f"has an entry that is not to be had beside it as it is ({index.fqn})")
        ends[name] = max(ends.get(name, 0), place.offset + place.length)
    return ends


def _damage(shard: Path, end: int) -> str | None:
    if not shard.is_file():
        return "is missing"
    size = shard.stat().st_size
    return f"has {size} bytes, and {end} at least were written" if size < end else None
