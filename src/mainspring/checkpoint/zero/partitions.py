"""Which values in which files are a parameter's.

ZeRO lays the parameters of a group behind each other and divides them among the processes: at stages 1 and 2 the whole
row, which is filled up at its end; at stage 3 each parameter for itself, filled up so that all have as many values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any

import torch

from mainspring.checkpoint.stored import InFiles, Run, joined
from mainspring.errors import CheckpointError

Shapes = Mapping[str, torch.Size]


def cut_groups(
    groups: Sequence[Shapes], parts: Sequence[Sequence[InFiles]], gaps: Sequence[Sequence[int]] | None
) -> dict[str, InFiles]:
    """Find the parameters of stages 1 and 2.

    Args:
        groups: The shapes of each group's parameters, in the order in which they lie.
        parts: What each process has of each group.
        gaps: How many values lie behind each parameter of each group that are nobody's; None: none.

    Raises:
        CheckpointError: There are fewer values than the shapes say, or many more.
    """
    found: dict[str, InFiles] = {}
    for index, shapes in enumerate(groups):
        row = joined([flat(part[index]) for part in _of_groups(parts, len(groups))])
        between = _gaps(gaps, index, len(shapes))
        start = 0
        for (name, shape), gap in zip(shapes.items(), between, strict=True):
            found[name] = InFiles(shape, row.dtype, row.flat(start, prod(shape)))
            start += prod(shape) + gap
        _refuse_leftover(row.numel() - start, 2 * len(parts))
    return found


def cut_parameters(groups: Sequence[Shapes], parts: Sequence[Sequence[InFiles]]) -> dict[str, InFiles]:
    """Find the parameters of stage 3; arguments and errors as of `cut_groups`.

    DeepSpeed divides the groups further; their pieces lie behind each other as one row.
    """
    rows = [joined([flat(piece) for piece in part]) for part in parts]
    found: dict[str, InFiles] = {}
    start = 0
    for shapes in groups:
        for name, shape in shapes.items():
            length = ceil(prod(shape) / len(rows))
            found[name] = from_pieces(shape, [_slice(row, start, length) for row in rows])
            start += length
    for row in rows:
        _refuse_leftover(row.numel() - start, 0)
    return found


def from_pieces(shape: torch.Size, pieces: Sequence[InFiles]) -> InFiles:
    """Return the tensor of this shape whose values the pieces hold in order; what they hold beyond is filling.

    Raises:
        CheckpointError: They hold fewer values, or more than is filled up.
    """
    whole = joined([flat(piece) for piece in pieces])
    _refuse_leftover(whole.numel() - prod(shape), len(pieces) - 1)
    return InFiles(shape, whole.dtype, whole.flat(0, prod(shape)))


def flat(value: Any) -> InFiles:
    """Return a tensor whose values stand in order in its file as one row.

    Raises:
        CheckpointError: It is none.
    """
    if not isinstance(value, InFiles):
        raise CheckpointError("a process's part is not a row of numbers")
    return InFiles(torch.Size([value.numel()]), value.dtype, value.runs)


def _slice(row: InFiles, start: int, count: int) -> InFiles:
    runs: tuple[Run, ...] = row.flat(start, count)
    return InFiles(torch.Size([count]), row.dtype, runs)


def _of_groups(parts: Sequence[Sequence[InFiles]], count: int) -> Sequence[Sequence[InFiles]]:
    if any(len(part) != count for part in parts):
        raise CheckpointError("the processes wrote other groups of parameters than the model has")
    return parts


def _gaps(gaps: Sequence[Sequence[int]] | None, index: int, count: int) -> Sequence[int]:
    found = [0] * count if gaps is None else gaps[index]
    if len(found) != count:
        raise CheckpointError("it does not say of every parameter where it ends")
    return found


def _refuse_leftover(left: int, filling: int) -> None:
    if not 0 <= left <= filling:
        raise CheckpointError(
            f"{abs(left)} values are {'too many' if left > 0 else 'missing'} in what the processes wrote"
        )
