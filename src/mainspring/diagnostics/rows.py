"""The samples of a batch: how many they are, some of them, and two batches as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mainspring.diagnostics.values import tensors


def rows_of(batch: Any) -> int | None:
    """Samples in a batch: the first dimension that most of its tensors have; None where it has no such tensor."""
    sizes = Counter(tensor.shape[0] for _, tensor in tensors(batch, "") if tensor.dim())
    return sizes.most_common(1)[0][0] if sizes else None


def part_of(value: Any, rows: int, start: int, stop: int) -> Any:
    """The samples from `start` to `stop` of a batch of `rows`; what has no rows is part of every one.

    Raises:
        ValueError: A tensor has another number of rows, so that it is not known what of it belongs to which sample.
    """
    if isinstance(value, Tensor):
        if value.dim() == 0 or (value.shape[0] == 1 and rows != 1):
            return value
        if value.shape[0] != rows:
            raise ValueError(
                f"the batch has {rows} samples, and one of its tensors the shape {tuple(value.shape)}: it is not known "
                "what of it belongs to which sample"
            )
        return value[start:stop]
    if isinstance(value, Mapping):
        return {key: part_of(inner, rows, start, stop) for key, inner in value.items()}
    if type(value) in (tuple, list):
        if len(value) == rows and not any(isinstance(inner, Tensor) and inner.dim() for inner in value):
            return value[start:stop]
        return type(value)(part_of(inner, rows, start, stop) for inner in value)
    return value


def joined(batches: Sequence[Any]) -> Any | None:
    """Several batches as one; None where they do not fit together, as where they are padded to other lengths."""
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, Tensor):
        fit = first.dim() and all(isinstance(one, Tensor) and one.shape[1:] == first.shape[1:] for one in batches)
        return torch.cat(list(batches)) if fit else None
    if isinstance(first, Mapping) and all(isinstance(one, Mapping) and one.keys() == first.keys() for one in batches):
        columns = {key: joined([one[key] for one in batches]) for key in first}
        return None if any(column is None for column in columns.values()) else columns
    return None
