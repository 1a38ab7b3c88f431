"""What an evaluation keeps for `compute_metrics` and for its result: arrays in memory, or maps of files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from mainspring.evaluation.pieces import Array, FilePieces, MemoryPieces
from mainspring.metrics import Tree, as_array, atleast_1d, leaves_of, map_tree, require_same_tree, unshared

WAITING_BYTES = 16 << 20
"""What may wait on the device where `eval_accumulation_steps` does not say how many batches may."""


class Outputs(NamedTuple):
    """What one batch gave: trees of tensors or arrays, or None."""

    predictions: Tree = None
    labels: Tree = None
    inputs: Tree = None
    losses: Tree = None


class Rows:
    """One object for each row, which is no tensor: what `eval_use_gather_object` is for."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice) -> Rows:
        return Rows(self.items[rows])


class Shelf:
    """All that one evaluation keeps: in memory, or in files once it would take more of it than allowed.

    Args:
        limit: Bytes of memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reserved = 0
        self._columns: list[Column] = []
        self.in_files = limit <= 0

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *exception: object) -> None:
        for column in self._columns:
            column.pieces.close()

    def column(self, expected_rows: int | None) -> Column:
        """A place for one more output."""
        column = Column(self, expected_rows)
        self._columns.append(column)
        return column

    def reserve(self, bytes_: int) -> None:
        """Count memory that is about to be taken; everything moves to files where that would be too much."""
        self._reserved += bytes_
        if self._reserved > self._limit and not self.in_files:
            self.in_files = True
            for column in self._columns:
                column.move_to_file()


class Column:
    """The rows of one output."""

    def __init__(self, shelf: Shelf, expected_rows: int | None) -> None:
        self._shelf = shelf
        self.pieces: MemoryPieces | FilePieces = FilePieces() if shelf.in_files else MemoryPieces(expected_rows)

    def append(self, array: Array) -> None:
        """Take in one batch."""
        self._shelf.reserve(self.pieces.bytes_for(array))
        self.pieces.append(array)

    def move_to_file(self) -> None:
        """Go on in a file, with what is here."""
        former, self.pieces = self.pieces, FilePieces()
        arrays = former.arrays()
        arrays.reverse()
        while arrays:  # each is let go as soon as it is written
            self.pieces.append(arrays.pop())


class JoinedTree:
    """One kind of output, joined on dimension 0; short rows are filled up on dimension 1."""

    def __init__(self, shelf: Shelf, expected_rows: int | None) -> None:
        self._shelf = shelf
        self._expected_rows = expected_rows
        self._like: Tree = None
        self._columns: list[Column | list[Any]] = []

    def add(self, tree: Tree) -> None:
        """Take in one batch, of the structure of those before it."""
        skeleton = map_tree(lambda _: _ANYTHING, tree)
        if not self._columns:
            self._like = skeleton
            self._columns = [
                [] if isinstance(leaf, Rows) else self._shelf.column(self._expected_rows) for leaf in leaves_of(tree)
            ]
        require_same_tree(self._like, skeleton)
        for column, leaf in zip(self._columns, leaves_of(tree), strict=True):
            if isinstance(column, list):
                column.extend(leaf.items)
            else:
                column.append(atleast_1d(leaf))

    def arrays(self) -> Tree | None:
        """Everything that was added; None where nothing was."""
        if not self._columns:
            return None
        joined = iter([column if isinstance(column, list) else column.pieces.joined() for column in self._columns])
        return map_tree(lambda _: next(joined), self._like)


class ListedTree:
    """One kind of output, as a list of batches, each of any structure."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._skeletons: list[Tree] = []
        self._column: Column | None = None

    def add(self, tree: Tree) -> None:
        """Take in one batch."""
        self._skeletons.append(map_tree(lambda leaf: leaf.items if isinstance(leaf, Rows) else _ARRAY, tree))
        for leaf in leaves_of(tree):
            if not isinstance(leaf, Rows):
                self._column = self._column or self._shelf.column(None)
                self._column.append(atleast_1d(leaf))

    def arrays(self) -> list[Tree] | None:
        """The batches; None where nothing was added."""
        found = iter(self._column.pieces.arrays() if self._column is not None else ())
        return [
            map_tree(lambda leaf: next(found) if leaf is _ARRAY else leaf, tree) for tree in self._skeletons
        ] or None


_ARRAY = object()
"""Stands in a batch for an array that lies in a column."""

_ANYTHING = np.empty(0)
"""Stands for any leaf where structures are compared."""


class Kept:
    """The arrays of one evaluation."""

    def __init__(self, shelf: Shelf, concat: bool, expected_rows: int | None) -> None:
        self._trees = [JoinedTree(shelf, expected_rows) if concat else ListedTree(shelf) for _ in Outputs._fields]

    def add(self, outputs: Outputs) -> None:
        """Take in the outputs of one batch, in host memory."""
        for tree, value in zip(self._trees, outputs, strict=True):
            if value is not None:
                tree.add(value)

    def arrays(self) -> Outputs:
        """Everything that was added. To be asked for once."""
        return Outputs(*(tree.arrays() for tree in self._trees))


class Transfer:
    """Brings outputs to the host, many batches at a time: each time waits for the device.

    Args:
        receivers: What takes the outputs in, by a method `add`.
        batches: How many batches may wait on the device; None for as many as take up little of it.
    """

    def __init__(self, receivers: list[Any], batches: int | None) -> None:
        self._receivers = receivers
        self._batches = batches
        self._waiting: list[Outputs] = []
        self._bytes = 0

    def add(self, outputs: Outputs) -> None:
        """Take in the outputs of one batch."""
        if not self._receivers:
            return
        outputs = Outputs(*(map_tree(unshared, value) for value in outputs))
        self._waiting.append(outputs)
        self._bytes += sum(_nbytes(leaf) for value in outputs for leaf in leaves_of(value))
        full = self._bytes >= WAITING_BYTES if self._batches is None else len(self._waiting) >= self._batches
        if full:
            self.to_host()

    def to_host(self) -> None:
        """Hand on what waits."""
        self._waiting.reverse()
        while self._waiting:
            outputs = Outputs(*(None if value is None else map_tree(_on_host, value) for value in self._waiting.pop()))
            for receiver in self._receivers:
                receiver.add(outputs)
        self._bytes = 0


def _on_host(leaf: Any) -> Any:
    return leaf if isinstance(leaf, Rows) else as_array(leaf)


def _nbytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, torch.Tensor) else getattr(leaf, "nbytes", 0)


def each_array(tree: Tree) -> Iterator[Array]:
    """The arrays of a tree, in order."""
    for leaf in leaves_of(tree):
        if isinstance(leaf, Rows):
            raise TypeError("an output that is no tensor cannot be written to output_file: name it in ignore_keys")
        yield leaf
