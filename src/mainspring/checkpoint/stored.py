"""Tensors that stay in their files until they are asked for, and then come in pieces if one likes.

A model is so read, changed and written again in no more memory than a piece takes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mainspring.errors import CheckpointError

PIECE = 1 << 20
"""How many values are read at a time."""


class Stored(ABC):
    """A tensor that is not in memory yet.

    Attributes:
        shape: Its sizes.
        dtype: The type of its values.
    """

    shape: torch.Size
    dtype: torch.dtype

    @abstractmethod
    def pieces(self) -> Iterator[Tensor]:
        """Yield its values in order, as flat tensors on the CPU of at most `PIECE` values where its file allows that.

        Raises:
            CheckpointError: The file is shorter than it was.
            OSError: The system would not read it.
        """

    def read(self) -> Tensor:
        """Return it whole, on the CPU; errors as of `pieces`."""
        whole = torch.empty(self.numel(), dtype=self.dtype)
        start = 0
        for piece in self.pieces():
            whole[start : start + piece.numel()] = piece
            start += piece.numel()
        return whole.view(self.shape)

    def contiguous(self) -> Tensor:
        """`read`, under the name that DeepSpeed's tensors have for it."""
        return self.read()

    def numel(self) -> int:
        """How many values it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class Run:
    """Values that stand one after another in a file.

    Attributes:
        file: Where they are.
        offset: How many bytes stand before the first.
        count: How many values.
    """

    file: Path
    offset: int
    count: int


@dataclass(frozen=True)
class InFiles(Stored):
    """A tensor whose values stand in order in one file or in several.

    Attributes:
        runs: Where they are; together as many values as the shape says.
    """

    shape: torch.Size
    dtype: torch.dtype
    runs: tuple[Run, ...]

    def pieces(self) -> Iterator[Tensor]:
        """Yield its values from the files."""
        for run in self.runs:
            with run.file.open("rb", buffering=0) as file:
                file.seek(run.offset)
                for start in range(0, run.count, PIECE):
                    yield _values(file.readinto, min(PIECE, run.count - start), self.dtype, run.file)

    def flat(self, start: int, count: int) -> tuple[Run, ...]:
        """Return where some of its values are, by their numbers in order.

        Raises:
            CheckpointError: It has not so many.
        """
        if start < 0 or start + count > self.numel():
            raise CheckpointError(f"{self.runs[0].file if self.runs else 'a file'} holds fewer values than it should")
        found = []
        for run in self.runs:
            first, last = max(start, 0), min(start + count, run.count)
            if first < last:
                found.append(Run(run.file, run.offset + first * self.dtype.itemsize, last - first))
            start -= run.count
        return tuple(found)


@dataclass(frozen=True)
class Made(Stored):
    """A tensor whose values do not stand in order anywhere: made whole when it is asked for."""

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]

    def pieces(self) -> Iterator[Tensor]:
        """Yield its values, once all of them are made."""
        yield from self.make().contiguous().view(-1).split(PIECE)

    def read(self) -> Tensor:
        """Make it."""
        return self.make().contiguous()


def joined(parts: Sequence[InFiles]) -> InFiles:
    """Return flat tensors of one type behind each other as one.

    Raises:
        CheckpointError: Their types differ, or there are none.
    """
    if len({part.dtype for part in parts}) != 1:
        raise CheckpointError("the pieces of a tensor are of different types, or there are none")
    runs = tuple(run for part in parts for run in part.runs)
    return InFiles(torch.Size([sum(part.numel() for part in parts)]), parts[0].dtype, runs)


def strided(source: InFiles, start: int, shape: torch.Size, strides: Iterable[int]) -> Stored:
    """Return a view of a flat tensor: from which value on, with which sizes and strides.

    Raises:
        CheckpointError: It reaches beyond the tensor.
    """
    steps = tuple(strides)
    if _in_order(shape, steps):
        return InFiles(shape, source.dtype, source.flat(start, prod(shape)))
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    below = InFiles(torch.Size([extent]), source.dtype, source.flat(start, extent))
    return Made(shape, source.dtype, lambda: below.read().as_strided(shape, steps))


def _in_order(shape: torch.Size, strides: Sequence[int]) -> bool:
    """Whether values with these strides stand in order, without gaps."""
    if len(strides) != len(shape) or min((*shape, *strides), default=0) < 0:
        raise CheckpointError("a tensor's sizes and strides are not a tensor's")
    expected = 1
    for size, step in reversed(list(zip(shape, strides, strict=True))):
        if size != 1 and step != expected:
            return not prod(shape)
        expected *= size
    return True


def bytes_of(values: Tensor) -> memoryview:
    """The memory of a flat tensor on the CPU."""
    array: Any = values.view(torch.uint8).numpy()
    return memoryview(array)


def _values(fill: Callable[[memoryview], int | None], count: int, dtype: torch.dtype, file: Path) -> Tensor:
    data = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    left = bytes_of(data)
    while left:
        got = fill(left)
        if not got:
            raise CheckpointError(f"{os.fspath(file)} ends too early")
        left = left[got:]
    return data.view(dtype)
