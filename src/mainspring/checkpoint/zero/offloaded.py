"""Numbers that an optimizer had on NVMe: DeepSpeed copies its swap files into the checkpoint, and leaves them out elsewhere.

A file has the numbers of the parameters of one group as they are, filled up at the end. Its name counts parameters as only
the engine did, so that the right one is known by its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from pathlib import Path

import torch

from mainspring.checkpoint.stored import InFiles, Run
from mainspring.checkpoint.zero.partitions import Shapes
from mainspring.errors import CheckpointError

_FOLDER = "offloaded_tensors"
_SUFFIX = ".tensor.swp"
_PATTERN = f"[0-9]*_[0-9]*{_SUFFIX}"
_FILLING = 1 << 16  # bytes that are filled up at most: 1024 for each thread of DeepSpeed's reading and writing
_DTYPE = torch.float32


def with_offloaded(
    folder: Path, rank: int, groups: Sequence[Shapes], parts: Sequence[InFiles], processes: int
) -> list[InFiles]:
    """Return a process's part of each group at stage 3, those from NVMe included.

    Args:
        folder: The checkpoint's folder, in which `offloaded_tensors` is.
        rank: The process.
        groups: The shapes of each group's parameters.
        parts: What the process's own file has of each; empty where it was on NVMe.
        processes: How many there were.

    Raises:
        CheckpointError: A file is missing, or several could be the one.
    """
    sizes = [sum(ceil(prod(shape) / processes) for shape in shapes.values()) for shapes in groups]
    if len(sizes) != len(parts) or not any(size and not part.numel() for size, part in zip(sizes, parts, strict=True)):
        return list(parts)
    files = sorted((folder / _FOLDER / f"rank{rank:02d}").glob(_PATTERN))
    found = [
        part if part.numel() or not size else _found(folder, files, size)
        for size, part in zip(sizes, parts, strict=True)
    ]
    used = [part.runs[0].file for part in found if part.runs and part.runs[0].file in files]
    if len(set(used)) < len(used):
        raise CheckpointError(
            f"{folder} lacks a file of the optimizer's numbers that were on NVMe, beside {used[0].name}"
        )
    return found


def offloaded_state(weight: InFiles, kind: str) -> InFiles:
    """Return what an optimizer that was on NVMe remembers beside a part of the weights.

    Args:
        weight: The part, from such a file.
        kind: What it remembers: "exp_avg".

    Raises:
        CheckpointError: There is no file of it.
    """
    beside = weight.runs[0].file
    file = beside.with_name(f"{kind}-{beside.name}")
    size = weight.numel() * _DTYPE.itemsize
    if not beside.name.endswith(_SUFFIX) or not file.is_file() or file.stat().st_size < size:
        raise CheckpointError(f"{beside.parent} lacks a file of the optimizer's numbers that were on NVMe: {file.name}")
    return InFiles(weight.shape, _DTYPE, (Run(file, 0, weight.numel()),))


def _found(folder: Path, files: Sequence[Path], count: int) -> InFiles:
    """The shortest file that is long enough: all are filled up to a multiple of the same length."""
    size = count * _DTYPE.itemsize
    lengths = {file: file.stat().st_size for file in files}
    fitting = sorted((length, file) for file, length in lengths.items() if 0 <= length - size < _FILLING)
    if not fitting:
        raise CheckpointError(f"{folder} lacks a file of the optimizer's numbers that were on NVMe ({count} values)")
    if len(fitting) > 1 and fitting[0][0] == fitting[1][0]:
        raise CheckpointError(
            f"{folder} has several files from NVMe that could be the same group's ({fitting[0][1].name}, "
            f"{fitting[1][1].name}): load the checkpoint with the optimizer offloaded to the CPU, and save it from there"
        )
    return InFiles(torch.Size([count]), _DTYPE, (Run(fitting[0][1], 0, count),))
