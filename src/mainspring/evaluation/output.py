"""`predict(output_file=...)`: predictions and labels go to files batch by batch, and appear there whole or not at all."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mainspring.errors import MissingPackageError, OptionError, Problem
from mainspring.evaluation.kept import Outputs, each_array
from mainspring.evaluation.pieces import Array, FilePieces
from mainspring.metrics import PADDING, PredictionOutput
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

NPY_HEADER_BYTES = 256
"""Room for the header of an .npy file, which is written last: only then is the number of rows known."""

ROW_GROUP_BYTES = 16 << 20
"""What is collected for a parquet file before it is written."""

FIRST_PASS, WIDENING_PASS = ".partial", ".padded.partial"
"""Endings of files that are not complete. A pass that fills short rows up reads what the first one wrote."""


class OutputFile:
    """Where a prediction goes.

    Args:
        path: Ends in `.npy` or `.parquet`.
        writes: Whether this process is the one that writes.

    Attributes:
        has_predictions: Whether there was anything to write. Only the process that writes knows it.

    Raises:
        OptionError: The ending is another one.
        MissingPackageError: pyarrow is needed and not installed.
    """

    def __init__(self, path: str | os.PathLike[str], writes: bool) -> None:
        path = Path(path)
        formats: dict[str, Any] = {".npy": NpyFiles, ".parquet": ParquetFile}
        if path.suffix not in formats:
            raise OptionError(
                [Problem("output_file", str(path), "is of no known format", f"end it in {' or '.join(formats)}")]
            )
        self._files = formats[path.suffix](path) if writes else None
        self._asked = False
        self.has_predictions = False

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._files is not None:
            self._files.close()

    def receivers(self) -> list[Any]:
        """What takes the outputs in, in this process."""
        self._asked = True
        return [] if self._files is None else [self]

    def add(self, outputs: Outputs) -> None:
        """Take in one batch."""
        assert self._files is not None
        self.has_predictions |= outputs.predictions is not None
        self._files.add(outputs)

    def finish(self, result: PredictionOutput) -> None:
        """Give the files their names. What a loop of the user's own returned is written now."""
        if self._files is None:
            return
        if not self._asked and result.predictions is not None:
            self.add(Outputs(result.predictions, result.label_ids))
        if self.has_predictions:
            self._files.finish()


class NpyFiles:
    """One .npy file for each array: the predictions under the name that was asked for, the labels beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[Path, FilePieces] = {}
        self._open = ExitStack()
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, outputs: Outputs) -> None:
        """Take in one batch."""
        for path, array in self._named(outputs):
            if path not in self._files:
                self._files[path] = self._begin(path)
            self._files[path].append(array)

    def _named(self, outputs: Outputs) -> list[tuple[Path, Array]]:
        named = []
        for middle, value in (("", outputs.predictions), (".labels", outputs.labels)):
            arrays = list(each_array(value)) if value is not None else []
            for index, array in enumerate(arrays):
                number = f".{index}" if len(arrays) > 1 else ""
                named.append((self._path.with_name(f"{self._path.stem}{middle}{number}.npy"), array))
        return named

    def _begin(self, path: Path) -> FilePieces:
        return FilePieces(self._open.enter_context(_Partial(path, FIRST_PASS)).file, start=NPY_HEADER_BYTES)

    def finish(self) -> None:
        """Fill short rows up where there are any, and write the headers; what an earlier prediction left goes."""
        for path, pieces in self._files.items():
            if pieces.layout is None:
                with _Partial(path, WIDENING_PASS) as partial:
                    widened = FilePieces(partial.file, start=NPY_HEADER_BYTES)
                    pieces.widen_into(widened, PADDING)
                    self._complete(widened, partial.path, path)
            else:
                self._complete(pieces, Path(pieces.file.name), path)
        self._remove_others()

    def _complete(self, pieces: FilePieces, partial: Path, path: Path) -> None:
        layout = pieces.layout
        assert layout is not None
        pieces.file.seek(0)
        pieces.file.write(_npy_header(layout.dtype, layout.shape))
        pieces.file.flush()
        os.replace(partial, path)

    def _remove_others(self) -> None:
        """Remove what an earlier prediction of this name had and this one has not: it would be read as part of this."""
        complete = re.compile(rf"{re.escape(self._path.stem)}(\.labels)?(\.\d+)?\.npy")
        for path in self._path.parent.iterdir():
            name = path.name.removesuffix(WIDENING_PASS).removesuffix(FIRST_PASS)
            if not complete.fullmatch(name) or path in self._files or not path.is_file():
                continue
            if path.name == name:
                logger.warning("removing %s: an earlier prediction of this name wrote it, and this one did not", path)
            path.unlink()

    def close(self) -> None:
        """Close every file, and remove what has no name yet."""
        self._open.close()


class _Partial:
    """A file that is being written, beside the one that it is going to be; removed where that does not come about.

    What a killed prediction left under the same name is written over.
    """

    def __init__(self, path: Path, ending: str) -> None:
        self.path = path.with_name(path.name + ending)

    def __enter__(self) -> _Partial:
        self.file = self.path.open("w+b")
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header of version 1.0 of the format, filled up to the room that was left for it."""
    text = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    body = text.encode("latin1").ljust(NPY_HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


class ParquetFile:
    """One table: a row for each sample, a column for each array. Nothing is filled up beyond its batch."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet
        except ImportError as error:
            raise MissingPackageError(
                f"output_file={str(path)!r} needs pyarrow: pip install pyarrow, or choose a name that ends in .npy"
            ) from error
        self._arrow: Any = pa
        self._path = path
        self._open = ExitStack()
        self._writer: Any = None
        self._partial: _Partial | None = None
        self._waiting: list[Any] = []
        self._bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, outputs: Outputs) -> None:
        """Take in one batch."""
        columns = {}
        for name, value in (("predictions", outputs.predictions), ("labels", outputs.labels)):
            arrays = list(each_array(value)) if value is not None else []
            for index, array in enumerate(arrays):
                columns[f"{name}_{index}" if len(arrays) > 1 else name] = self._column(array)
        self._waiting.append(self._arrow.RecordBatch.from_pydict(columns))
        self._bytes += self._waiting[-1].nbytes
        if self._bytes >= ROW_GROUP_BYTES:
            self._write()

    def _column(self, array: Array) -> Any:
        """An arrow array of one entry a row: numbers, or lists of them, nested as deep as the row has dimensions."""
        values = self._arrow.array(np.ascontiguousarray(array).reshape(-1))
        for axis in range(array.ndim - 1, 0, -1):
            count = int(np.prod(array.shape[:axis]))
            offsets = np.arange(count + 1, dtype=np.int32) * array.shape[axis]
            values = self._arrow.ListArray.from_arrays(self._arrow.array(offsets, self._arrow.int32()), values)
        return values

    def _write(self) -> None:
        if not self._waiting:
            return
        table = self._arrow.Table.from_batches(self._waiting).combine_chunks()
        if self._writer is None:
            self._partial = self._open.enter_context(_Partial(self._path, FIRST_PASS))
            self._writer = self._arrow.parquet.ParquetWriter(self._partial.file, table.schema)
            self._open.callback(self._writer.close)
        self._writer.write_table(table)
        self._waiting, self._bytes = [], 0

    def finish(self) -> None:
        """Write what is left, and the end of the file."""
        self._write()
        if self._partial is not None:
            self._writer.close()
            self._partial.file.flush()
            os.replace(self._partial.path, self._path)

    def close(self) -> None:
        """Close the file, and remove it where it has no name yet."""
        self._open.close()
