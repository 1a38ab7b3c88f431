"""``mainspring checkpoints compare``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mainspring.cli.answer import Answer
from mainspring.cli.checkpoints.contents import PARTS, Leaves
from mainspring.cli.checkpoints.survey import is_checkpoint

_PIECE = 1 << 24  # values that are widened at a time


def comparison(first: str, second: str) -> Answer:
    """Compare two checkpoints part by part, up to the first thing in which they differ.

    Weights come first, then the states of optimizer, schedule and loss scale, the random states, and what the trainer
    knows. Times, and the folder in which a run lies, are not compared.

    Args:
        first: A checkpoint.
        second: Another.

    Returns:
        Status 0 where they are equal bit for bit, else 1.

    Raises:
        ValueError: One is not a checkpoint, or cannot be read.
    """
    for path in (first, second):
        if not is_checkpoint(Path(path)):
            raise ValueError(f"{path} is not a checkpoint")
    lines: list[str] = []
    for part, contents in PARTS.items():
        one, other = contents(Path(first)), contents(Path(second))
        difference = _first_difference(one, other, first, second)
        if difference is not None:
            return Answer("\n".join([*lines, f"{part}: {difference}"]), status=1)
        if one:
            lines.append(f"{part}: equal ({len(one)} value{'s' if len(one) > 1 else ''})")
    return Answer("\n".join(lines))


def _first_difference(one: Leaves, other: Leaves, first: str, second: str) -> str | None:
    for name in one:
        if name not in other:
            return f"{name} is in {first} only"
        difference = _difference(one[name](), other[name]())
        if difference is not None:
            return f"{name} differs: {difference}"
    for name in other:
        if name not in one:
            return f"{name} is in {second} only"
    return None


def _difference(one: Any, other: Any) -> str | None:
    """How two values differ; None: they do not."""
    one, other = (torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in (one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _difference_of_tensors(one, other)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return "only one of them is a tensor"
    if type(one) is type(other) and (
        one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
    ):
        return None
    return f"{one!r} and {other!r}"


def _difference_of_tensors(one: Tensor, other: Tensor) -> str | None:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{_kind(one)} and {_kind(other)}"
    one, other = (tensor.detach().to_dense().reshape(-1).contiguous() for tensor in (one, other))
    if torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
        return None
    pairs = list(zip(one.split(_PIECE), other.split(_PIECE), strict=True))
    largest = torch.stack([(_wide(left) - _wide(right)).abs().max() for left, right in pairs]).max()
    count = sum(int((_bytes(left) != _bytes(right)).any(dim=1).sum()) for left, right in pairs)
    return f"max abs difference {float(largest):.6g}, in {count} of {one.numel()} values"


def _bytes(values: Tensor) -> Tensor:
    return values.view(torch.uint8).reshape(len(values), -1)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
