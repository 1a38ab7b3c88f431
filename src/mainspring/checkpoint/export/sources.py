"""The weights in a checkpoint, whichever form it has; none is read yet."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.lazy_torch import is_lazy, read_lazily
from mainspring.checkpoint.names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    FSDP_MODEL_NAME,
)
from mainspring.checkpoint.stored import InFiles, Made, Run, Stored
from mainspring.checkpoint.torch_files import load_torch
from mainspring.checkpoint.weights import weight_files, without_wrapper_prefix
from mainspring.checkpoint.zero import is_zero_checkpoint, zero_weights
from mainspring.errors import CheckpointError

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("<Q")
_NO_ALIAS = "format"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types of values that a safetensors file can hold, by its names for them."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a model, or of an adapter.

    Attributes:
        tensors: Each once, by name.
        aliases: Further names of tied weights, with the name that `tensors` has for each.
        form: What the checkpoint is, in words.
        masters: Whether they are the numbers that an optimizer steps in float32, whatever the model computes in.
        folder: The folder of the checkpoint, with `/` between, that they belong into; "" for its top.
        adapter: Whether they are an adapter's alone.
    """

    tensors: dict[str, Stored]
    aliases: dict[str, str]
    form: str
    masters: bool = False
    folder: str = ""
    adapter: bool = False


def weights_of(contents: Contents, tag: str | None = None) -> list[Weights]:
    """Find what a checkpoint holds: its adapters where it has some, else the model.

    Of a model that DeepSpeed wrote as well as the trainer, DeepSpeed's is taken: it has the numbers of the optimizer.

    Args:
        contents: The checkpoint.
        tag: For DeepSpeed's, which of the folders in it; None: the one that its file `latest` names.

    Raises:
        CheckpointError: There are none, or they are damaged or refused.
        OSError: The system would not read a file.
    """
    if tag is None and (adapters := _adapters(contents)):
        return adapters
    if tag is not None or is_zero_checkpoint(contents):
        return [_of_zero(contents, tag)]
    files = weight_files(contents)
    if not files:
        raise CheckpointError(f"{contents.root} holds no weights: neither a model's, nor an adapter's, nor DeepSpeed's")
    return [_named(_of_files(files), _form(files))]


def _of_zero(contents: Contents, tag: str | None) -> Weights:
    found = zero_weights(contents.root, tag)
    form = f"DeepSpeed's, ZeRO stage {found.stage}" if found.stage else "DeepSpeed's, without ZeRO"
    return _named((found.tensors, found.aliases), form, masters=found.stage > 0)


def _named(found: tuple[Mapping[str, Stored], Mapping[str, str]], form: str, masters: bool = False) -> Weights:
    """Drop what wrappers put before every name, and join the names of one and the same tensor."""
    everything = without_wrapper_prefix({**found[0], **{name: found[0][to] for name, to in found[1].items()}})
    first: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    for name, value in everything.items():
        place = (value.runs, value.shape, value.dtype) if isinstance(value, InFiles) and value.runs else id(value)
        if first.setdefault(place, name) != name:
            aliases[name] = first[place]
    tensors = {name: value for name, value in everything.items() if name not in aliases}
    return Weights(tensors, aliases, form, masters)


def _form(files: list[Path]) -> str:
    if files[0].is_dir():
        return "FSDP's shards"
    if files[0].name.startswith(FSDP_MODEL_NAME):
        return "FSDP's, whole"
    return files[0].name if len(files) == 1 else f"{len(files)} files with an index"


# ---- adapters ----


def _adapters(contents: Contents) -> list[Weights]:
    places = {"": contents, **{name: contents.below(name) for name in contents.folders()}}
    return [_adapter(inner, name) for name, inner in places.items() if inner.file(ADAPTER_CONFIG_NAME) is not None]


def _adapter(contents: Contents, name: str) -> Weights:
    file = contents.file(ADAPTER_SAFE_WEIGHTS_NAME) or contents.file(ADAPTER_WEIGHTS_NAME)
    if file is None:
        raise CheckpointError(
            f"{contents.root} describes an adapter, and does not hold its weights: they are in the pieces that the processes "
            f"wrote; load those into the model with load_state_dict_from_zero_checkpoint, and save its adapter from there"
        )
    tensors, aliases = _of_files([file])
    return Weights(tensors, aliases, f"an adapter ({file.name})", folder=name, adapter=True)


# ---- files ----


def _of_files(files: Iterable[Path]) -> tuple[dict[str, Stored], dict[str, str]]:
    tensors: dict[str, Stored] = {}
    aliases: dict[str, str] = {}
    for file in files:
        found, others = _of_file(file)
        tensors |= found
        aliases |= others
    return tensors, {name: to for name, to in aliases.items() if to in tensors and name not in tensors}


def _of_file(file: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    if file.is_dir():
        from mainspring.checkpoint.export.shards import of_shards  # needs torch's distributed checkpoints

        return of_shards(file), {}
    if file.suffix == ".safetensors":
        return _of_safetensors(file)
    if not is_lazy(file):
        logger.warning("%s is of torch's older form: it is read whole", file)
        state: Any = {name: _in_memory(value) for name, value in dict(load_torch(file)).items()}
    else:
        state = read_lazily(file)
    other = next((name for name, value in state.items() if not isinstance(value, Stored)), None)
    if other is not None:
        raise CheckpointError(f"{other} in {file} is not a tensor")
    return dict(state), {}


def _in_memory(value: Any) -> Any:
    return Made(value.shape, value.dtype, partial(_same, value)) if isinstance(value, Tensor) else value


def _same(value: Tensor) -> Tensor:
    return value


def _of_safetensors(file: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    try:
        with safe_open(file, framework="np") as opened:  # compares the header's sizes with the file's
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} could not be read: {error}") from error
    with file.open("rb") as raw:
        (length,) = _LENGTH.unpack(raw.read(_LENGTH.size))
        header = json.loads(raw.read(length))
    header.pop("__metadata__", None)
    begin = _LENGTH.size + length
    tensors = {name: _in_safetensors(file, begin, name, entry) for name, entry in header.items()}
    return tensors, {name: to for name, to in metadata.items() if name != _NO_ALIAS and to in tensors}


def _in_safetensors(file: Path, begin: int, name: str, entry: dict[str, Any]) -> Stored:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(f"{name} in {file} has values of a type that cannot be exported: {entry['dtype']}")
    shape = torch.Size(entry["shape"])
    run = Run(file, begin + entry["data_offsets"][0], shape.numel())
    return InFiles(shape, dtype, (run,) if run.count else ())
