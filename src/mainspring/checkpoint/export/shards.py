"""The tensors in a folder of `torch.distributed.checkpoint`, each made of its chunks when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from mainspring.checkpoint.lazy_torch import read_lazily
from mainspring.checkpoint.sharded.metadata import read_metadata
from mainspring.checkpoint.sharded.streaming import entries_of
from mainspring.checkpoint.stored import InFiles, Made, Stored, joined
from mainspring.errors import CheckpointError

_PART = "model"


def of_shards(folder: Path) -> dict[str, Stored]:
    """Find a model's tensors in a folder of shards.

    Raises:
        CheckpointError: It is damaged or refused, holds no model, or something in that is no tensor.
        OSError: The system would not read a file.
    """
    metadata = read_metadata(folder)
    names = {key: path[1:] for key, path in entries_of(metadata).items() if path[0] == _PART and len(path) > 1}
    if not names:
        raise CheckpointError(f"{folder} holds no model")
    return {".".join(map(str, path)): _tensor(folder, metadata, key) for key, path in names.items()}


def _tensor(folder: Path, metadata: Metadata, key: str) -> Stored:
    kind = metadata.state_dict_metadata[key]
    if not isinstance(kind, TensorStorageMetadata):
        raise CheckpointError(f"{key} in {folder} is not a tensor")
    chunks = sorted(kind.chunks, key=lambda chunk: tuple(chunk.offsets))
    parts = [_chunk(folder, metadata, MetadataIndex(key, chunk.offsets), chunk.sizes) for chunk in chunks]
    dtype = kind.properties.dtype
    if any(part.dtype != dtype for part in parts):
        raise CheckpointError(f"{key} in {folder} is of another type than its metadata says")
    if all(chunk.sizes[1:] == kind.size[1:] for chunk in chunks) and all(isinstance(part, InFiles) for part in parts):
        rows = joined([part for part in parts if isinstance(part, InFiles)])
        return InFiles(kind.size, dtype, rows.flat(0, kind.size.numel()))
    return Made(kind.size, dtype, partial(_assembled, kind.size, dtype, chunks, parts))


def _chunk(folder: Path, metadata: Metadata, index: MetadataIndex, sizes: torch.Size) -> Stored:
    place = metadata.storage_data[index]
    found = read_lazily(folder / place.relative_path, window=(place.offset, place.length))
    if not isinstance(found, Stored) or found.shape != sizes:
        raise CheckpointError(
            f"{folder / place.relative_path} does not hold what the list of shards says it does of {index.fqn}"
        )
    return found


def _assembled(
    shape: torch.Size, dtype: torch.dtype, chunks: Sequence[ChunkStorageMetadata], parts: Sequence[Stored]
) -> Tensor:
    whole = torch.empty(shape, dtype=dtype)
    for chunk, part in zip(chunks, parts, strict=True):
        region = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        whole[region].copy_(part.read())
    return whole
