"""The allow-lists: what the pickles of a checkpoint may refer to, by kind of file."""

from __future__ import annotations

from typing import Any

_METADATA = "torch.distributed.checkpoint.metadata"
_METADATA_CLASSES = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
_BESIDE_THEM = (
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.filesystem._StoragePrefix",
    "torch.serialization._get_layout",
    "torch.Size",
    # The folder that a checkpoint was written to, under the names that versions of Python have for its class.
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)

DEEPSPEED_GLOBALS = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
"""DeepSpeed's own objects in its files, beside tensors and plain values; making one does nothing."""


def safe_globals() -> list[Any]:
    """Return what `load_torch` allows beyond what torch allows: numpy's random state, numbers, texts and arrays."""
    from mainspring.checkpoint.numpy_values import NUMPY_GLOBALS
    from mainspring.seeding import RNG_SAFE_GLOBALS

    return [*RNG_SAFE_GLOBALS, *NUMPY_GLOBALS]


def torch_globals() -> frozenset[str]:
    """Return what files of `torch.save` may refer to: what `load_torch` allows, and what the user allowed."""
    import torch
    from torch._weights_only_unpickler import _get_allowed_globals

    added = (*safe_globals(), *torch.serialization.get_safe_globals())
    return frozenset({*_get_allowed_globals(), *map(_name, added)})


def deepspeed_globals() -> frozenset[str]:
    """Return what a file of DeepSpeed's own checkpoints may refer to."""
    return torch_globals() | frozenset(DEEPSPEED_GLOBALS)


def metadata_globals() -> frozenset[str]:
    """Return what the metadata of a distributed checkpoint of torch may refer to."""
    import torch

    dtypes = {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return frozenset({*(f"{_METADATA}.{name}" for name in _METADATA_CLASSES), *_BESIDE_THEM, *dtypes})


def _name(entry: Any) -> str:
    """Return the name of an entry of torch's allow-list: a class or function, or one with the name it is to have."""
    return str(entry[1]) if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
