"""Whether a checkpoint fits on the disk, asked before a byte of it is written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mainspring.checkpoint.snapshot import tensors_in

_UNITS = ("B", "kB", "MB", "GB", "TB")


def check_space(folder: str | os.PathLike[str], needed_bytes: int) -> None:
    """Compare what a checkpoint needs with what its file system has left.

    Args:
        folder: Where it is to be written; it need not exist.
        needed_bytes: Its size, as from `estimate_bytes`, or that of the one before.

    Raises:
        OSError: With `errno.ENOSPC`: there is less left, or nothing.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    disk = shutil.disk_usage(place)
    if disk.total and disk.free < needed_bytes:  # some network file systems do not tell, and answer zero for all
        text = f"No space left on device: {_shown(needed_bytes)} are needed, and {_shown(disk.free)} are free"
        raise OSError(errno.ENOSPC, text, os.fspath(folder))


def estimate_bytes(*states: Any) -> int:
    """Return about how many bytes some states take on the disk.

    Args:
        states: State dicts and the like: tensors in dicts, lists and tuples. Memory that several tensors share is written
            once, and counted once.

    Returns:
        The size of the tensors. What else there is (numbers, names, the tokenizer) is small beside them and not counted.
    """
    seen: set[int] = set()
    return sum(_bytes(tensor, seen) for tensor in tensors_in(states))


def _bytes(tensor: Tensor, seen: set[int]) -> int:
    if tensor.layout != torch.strided or tensor.is_meta:
        return 0
    storage = tensor.untyped_storage()
    if storage._cdata in seen:
        return 0
    seen.add(storage._cdata)
    return storage.nbytes()


def _shown(size: float) -> str:
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {_UNITS[-1]}"
