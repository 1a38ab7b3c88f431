"""The rows of one output, batch after batch: in memory, or in a file once they would take too much of it.

No row is copied again for each batch. Batches of one shape fill an array of the size that the whole will have, or lie
one after the other in a file; batches of several widths are joined once, when they are asked for.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mainspring.metrics import PADDING, joined_arrays, require_joinable

Array = np.ndarray[Any, Any]


class MemoryPieces:
    """Batches in memory.

    Args:
        expected_rows: Rows of all batches together, where that is known: an array of that size is then filled.
    """

    def __init__(self, expected_rows: int | None) -> None:
        self._expected = expected_rows
        self._pieces: list[Array] = []
        self._whole: Array | None = None
        self._used = 0

    def bytes_for(self, array: Array) -> int:
        """Bytes that taking `array` in will need beyond those already reserved."""
        if self._fits(array):
            return 0
        return self._size_of_whole(array) if self._may_open(array) else int(array.nbytes)

    def append(self, array: Array) -> None:
        """Take in one batch."""
        if self._may_open(array):
            # Memory that is never written to is never used: too large an array costs nothing.
            self._whole = np.empty((self._expected, *array.shape[1:]), dtype=array.dtype)
        if self._fits(array):
            assert self._whole is not None
            self._whole[self._used : self._used + len(array)] = array
            self._used += len(array)
        else:
            self._close_whole()
            self._pieces.append(array)

    def arrays(self) -> list[Array]:
        """The batches that were taken in; those that filled the whole array come as one."""
        self._close_whole()
        return self._pieces

    def joined(self, padding: float = PADDING) -> Array:
        """All rows as one array; what is left here are no pieces any more."""
        arrays, self._pieces = self.arrays(), []
        return arrays[0] if len(arrays) == 1 else joined_arrays(arrays, padding)

    def close(self) -> None:
        """There is nothing to give back."""

    def _may_open(self, array: Array) -> bool:
        first = self._whole is None and not self._pieces
        return first and self._expected is not None and self._expected >= len(array)

    def _size_of_whole(self, array: Array) -> int:
        assert self._expected is not None
        return int(self._expected * math.prod(array.shape[1:]) * array.itemsize)

    def _fits(self, array: Array) -> bool:
        whole = self._whole
        if whole is None or array.dtype != whole.dtype or array.shape[1:] != whole.shape[1:]:
            return False
        return self._used + len(array) <= len(whole)

    def _close_whole(self) -> None:
        whole, self._whole = self._whole, None
        if whole is not None:
            self._pieces.append(whole if self._used == len(whole) else whole[: self._used])
            self._expected = None


@dataclass(frozen=True)
class _Piece:
    """Where a batch lies in its file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class FilePieces:
    """Batches one after the other in a file; what is handed out are memory maps of it.

    Args:
        file: Open for reading and writing; None for one that never has a name, so that nothing is left of it.
        start: Where in the file the first batch begins.
    """

    def __init__(self, file: BinaryIO | None = None, start: int = 0) -> None:
        self.file: Any = tempfile.TemporaryFile(prefix="mainspring-") if file is None else file  # noqa: SIM115
        self._end = start
        self._pieces: list[_Piece] = []

    def bytes_for(self, array: Array) -> int:
        """No memory is needed."""
        return 0

    def append(self, array: Array) -> None:
        """Write one batch."""
        array = np.ascontiguousarray(array)
        offset = -(-self._end // array.itemsize) * array.itemsize
        self.file.seek(offset)
        if array.size:
            _write(self.file, array)
        self._end = offset + array.nbytes
        self._pieces.append(_Piece(offset, array.dtype, array.shape))

    @property
    def layout(self) -> _Piece | None:
        """All batches as one piece, where they have one dtype and one shape per row; None where they have not."""
        first = self._pieces[0]
        if any(piece.dtype != first.dtype or piece.shape[1:] != first.shape[1:] for piece in self._pieces):
            return None
        return _Piece(first.offset, first.dtype, (sum(piece.shape[0] for piece in self._pieces), *first.shape[1:]))

    def arrays(self) -> list[Array]:
        """The batches, as views of one map of the file, which is closed."""
        self.file.flush()
        bytes_ = np.memmap(self.file, dtype=np.uint8, mode="r+", shape=(self._end,)) if self._end else np.empty(0, "u1")
        self.close()
        return [
            bytes_[p.offset : p.offset + math.prod(p.shape) * p.dtype.itemsize].view(p.dtype).reshape(p.shape)
            for p in self._pieces
        ]

    def joined(self, padding: float = PADDING) -> Array:
        """All rows as one map, the batches filled up to the widest; the file is closed."""
        layout = self.layout
        if layout is None:
            widened = FilePieces()
            self.widen_into(widened, padding)
            self.close()
            return widened.joined()
        self.file.flush()
        whole = _mapped(self.file, layout)
        self.close()
        return whole

    def widen_into(self, other: FilePieces, padding: float) -> None:
        """Write all batches into `other`, filled up to the widest, one at a time."""
        require_joinable(piece.shape for piece in self._pieces)
        dtype = np.result_type(*{piece.dtype for piece in self._pieces})
        width = max((piece.shape[1] for piece in self._pieces if len(piece.shape) > 1), default=None)
        filler = np.asarray(padding).astype(dtype)
        for array in self._read():
            if width is None:
                other.append(array.astype(dtype, copy=False))
                continue
            wide = np.full((len(array), width, *array.shape[2:]), filler, dtype=dtype)
            wide[:, : array.shape[1]] = array
            other.append(wide)

    def close(self) -> None:
        """Close the file; maps of it stay."""
        self.file.close()

    def _read(self) -> Iterator[Array]:
        """The batches, read rather than mapped: what was passed over is not held."""
        self.file.flush()
        for piece in self._pieces:
            self.file.seek(piece.offset)
            yield np.fromfile(self.file, dtype=piece.dtype, count=math.prod(piece.shape)).reshape(piece.shape)


def _mapped(file: BinaryIO, layout: _Piece) -> Array:
    if not math.prod(layout.shape):
        return np.empty(layout.shape, dtype=layout.dtype)  # nothing cannot be mapped
    return np.memmap(file, dtype=layout.dtype, mode="r+", offset=layout.offset, shape=layout.shape)


def _write(file: BinaryIO, array: Array) -> None:
    try:
        file.write(array.data)
    except OSError as error:
        place = file.name if isinstance(file.name, str) else tempfile.gettempdir()
        raise OSError(
            error.errno,
            f"{error.strerror}: predictions cannot be written to {place}; make room there, set TMPDIR to a folder on "
            "another disk, or raise eval_memory_limit",
        ) from error
