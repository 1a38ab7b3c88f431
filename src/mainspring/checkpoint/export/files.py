"""One file of weights, written piece by piece."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mainspring.checkpoint.export.sources import DTYPES
from mainspring.checkpoint.lazy_torch import read_lazily
from mainspring.checkpoint.stored import InFiles, Stored, bytes_of
from mainspring.errors import CheckpointError

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def dtype_in(value: Stored, dtype: torch.dtype | None) -> torch.dtype:
    """Return in which type a tensor is written: floating-point numbers in the one asked for, all else as it is."""
    return dtype if dtype is not None and value.dtype.is_floating_point else value.dtype


def size_in(value: Stored, dtype: torch.dtype | None) -> int:
    """Return how many bytes a tensor takes when it is written."""
    return value.numel() * dtype_in(value, dtype).itemsize


def write_safetensors(
    path: Path, tensors: Mapping[str, Stored], aliases: Mapping[str, str], dtype: torch.dtype | None
) -> None:
    """Write a safetensors file; each tensor once, further names as metadata, as safetensors' own `save_model` does.

    Args:
        path: The new file.
        tensors: What to write, by name.
        aliases: Further names, with the name that each stands for.
        dtype: The type of floating-point numbers; None: as they are.

    Raises:
        CheckpointError: A tensor has values of a type that such files do not know, or cannot be read.
        OSError: A file cannot be read or written.
    """
    # The widest types first, so that all are aligned, and then by name: as the library itself has it.
    order = sorted(tensors, key=lambda name: (-dtype_in(tensors[name], dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **dict(sorted(aliases.items()))}}
    offset = 0
    for name in order:
        size = size_in(tensors[name], dtype)
        header[name] = {
            "dtype": _code(name, dtype_in(tensors[name], dtype)),
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("xb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for name in order:
            _write(file, tensors[name], dtype)


def write_torch(
    path: Path, tensors: Mapping[str, Stored], aliases: Mapping[str, str], dtype: torch.dtype | None
) -> None:
    """Write a file as `torch.save` does of a state dict; further names are the same tensors.

    torch writes the file without numbers first, and they are filled in. It has no checksums therefore.

    Arguments and errors as of `write_safetensors`.
    """
    with FakeTensorMode():
        outline = {name: torch.empty(value.shape, dtype=dtype_in(value, dtype)) for name, value in tensors.items()}
    outline |= {name: outline[to] for name, to in aliases.items()}
    with path.open("xb") as file, torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(outline, file)
    places = read_lazily(path)
    with path.open("r+b") as file:
        for name, value in tensors.items():
            place = places[name]
            assert isinstance(place, InFiles)
            if place.runs:
                file.seek(place.runs[0].offset)
                _write(file, value, dtype)


def _write(file: BinaryIO, value: Stored, dtype: torch.dtype | None) -> None:
    for piece in value.pieces():
        file.write(bytes_of(piece.to(dtype_in(value, dtype))))


def _code(name: str, dtype: torch.dtype) -> str:
    if dtype not in _CODES:
        raise CheckpointError(f"{name} has values of type {dtype}, which safetensors does not know")
    return _CODES[dtype]
