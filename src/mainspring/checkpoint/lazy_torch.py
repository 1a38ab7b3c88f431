"""Files of `torch.save` whose tensors stay where they are until they are asked for (see `stored`).

Nothing in one is executed: its pickle is followed opcode by opcode first, and whatever it then refers to is one of the few
things below, or an inert stand-in.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from mainspring.checkpoint.allowed import torch_globals
from mainspring.checkpoint.pickles import Rules, examine, refusal
from mainspring.checkpoint.stored import InFiles, Run, Stored, strided
from mainspring.checkpoint.torch_zip import ZIP_START, data_pickle
from mainspring.errors import CheckpointError

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


class Inert:
    """Stands for an object that is of no use here: takes anything, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Make one, whatever it is called with."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Take an element of a list."""

    def extend(self, _: Any) -> None:
        """Take several."""

    def add(self, _: Any) -> None:
        """Take an element of a set."""


def is_lazy(path: Path) -> bool:
    """Whether a file has the form that can be read piece by piece; older ones of torch can only be read whole."""
    with path.open("rb") as file:
        return file.read(len(ZIP_START)) == ZIP_START


def read_lazily(
    path: str | os.PathLike[str], stand_ins: Mapping[str, Any] | None = None, window: tuple[int, int] | None = None
) -> Any:
    """Read a file of `torch.save` without its tensors.

    Args:
        path: The file.
        stand_ins: What is made of names that a checkpoint's files may not refer to otherwise; each must do nothing.
        window: Where in the file it stands, if it is not all of it: offset and length in bytes.

    Returns:
        The object, with a `Stored` in the place of each tensor and an `Inert` in that of what is neither a tensor nor plain.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it holds anything outside the allow-list.
        OSError: The system would not read it.
    """
    file, known = Path(path), dict(stand_ins or {})
    try:
        with file.open("rb") as opened:
            return _read(
                opened if window is None else io.BufferedReader(_Window(opened, *window)),
                file,
                known,
                (window or (0, 0))[0],
            )
    except FileNotFoundError:
        raise CheckpointError(f"{file} does not exist") from None


def _read(opened: IO[bytes], file: Path, known: dict[str, Any], begin: int) -> Any:
    if opened.read(len(ZIP_START)) != ZIP_START:
        raise CheckpointError(f"{file} is not a file of torch.save, or of an older form than can be read here")
    dangers = examine(opened, Rules(torch_globals() | known.keys()))
    if dangers:
        raise CheckpointError(f"{file} {refusal(dangers)}")
    try:
        records = _records(opened, begin)
        return _Unpickler(io.BytesIO(data_pickle(opened)), file, records, known).load()
    except (OSError, CheckpointError):
        raise
    except Exception as error:  # a damaged file can provoke nearly any of them
        raise CheckpointError(f"{file} could not be read: {type(error).__name__}: {error}") from error


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file = file
        self._offset = offset
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(begin + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        self._file.seek(self._offset + self._position)
        data = self._file.read(max(min(len(buffer), self._length - self._position), 0))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _records(opened: IO[bytes], begin: int) -> dict[str, tuple[int, int]]:
    """Where each record of a zip file begins in the file, and how long it is, by its name without the first folder."""
    with zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
        order = next((archive.read(entry) for entry in entries if entry.filename.endswith("/byteorder")), b"little")
    if order != b"little":
        raise CheckpointError("its numbers are in the byte order of another kind of machine")
    return {
        entry.orig_filename.partition("/")[2]: (begin + _data_offset(opened, entry), entry.file_size)
        for entry in entries
        if entry.compress_type == zipfile.ZIP_STORED
    }


def _data_offset(opened: IO[bytes], entry: zipfile.ZipInfo) -> int:
    opened.seek(entry.header_offset)
    header = _LOCAL_HEADER.unpack(opened.read(_LOCAL_HEADER.size))
    return entry.header_offset + _LOCAL_HEADER.size + int(header[9]) + int(header[10])


class _Unpickler(pickle.Unpickler):
    """Makes plain containers, `Stored` tensors, and nothing else that does anything."""

    def __init__(
        self, source: IO[bytes], file: Path, records: Mapping[str, tuple[int, int]], known: Mapping[str, Any]
    ) -> None:
        super().__init__(source, encoding="utf-8")
        self._file = file
        self._records = records
        self._known = {**_PLAIN, **known}
        self._allowed: Collection[str] = torch_globals()

    def find_class(self, module: str, name: str, /) -> Any:
        # Names of Python 2 become those of today, as where they were followed; a pickle of a later protocol has none.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full in self._known:
            return self._known[full]
        if full not in self._allowed:  # what was followed before has said so already
            raise pickle.UnpicklingError(f"it refers to {full}")
        return _storage_of(name) or _dtype_of(full) or Inert

    def persistent_load(self, pid: Any) -> InFiles:
        _, kind, key, _, count = pid
        dtype = kind.dtype if isinstance(kind, _Storage) else torch.uint8
        offset, size = self._records[f"data/{key}"]
        if count * dtype.itemsize > size:
            raise CheckpointError(f"{self._file} holds fewer values than it says")
        return InFiles(torch.Size([count]), dtype, (Run(self._file, offset, count),))


class _Storage:
    """A kind of storage: only its type of values counts."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def _storage_of(name: str) -> _Storage | None:
    return _Storage(_STORAGES[name]) if name in _STORAGES else None


def _dtype_of(full: str) -> torch.dtype | None:
    package, _, name = full.rpartition(".")
    value = getattr(torch, name, None) if package == "torch" else None
    return value if isinstance(value, torch.dtype) else None


def _tensor(storage: InFiles, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Stored:
    return strided(storage, offset, torch.Size(size), stride)


def _typed_tensor(
    storage: InFiles,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    _: Any,
    __: Any,
    dtype: Any,
    *___: Any,
) -> Stored:
    """A tensor of a type that has no storage of its own kind: the storage counts bytes."""
    (run,) = storage.runs
    count = run.count * storage.dtype.itemsize // dtype.itemsize
    typed = InFiles(torch.Size([count]), dtype, (Run(run.file, run.offset, count),))
    return strided(typed, offset, torch.Size(size), stride)


def _first(value: Any, *_: Any) -> Any:
    return value


class _PlainType:
    """Stands for torch's own classes of tensors, which say nothing of the values."""


def _with_attributes(make: Any, kind: Any, arguments: tuple[Any, ...], _: Any) -> Any:
    """A tensor that somebody gave attributes, which are left out; one of another class is of no use here."""
    return make(*arguments) if kind is _PlainType and make in (_tensor, _typed_tensor) else Inert()


_PLAIN: dict[str, Any] = {
    "builtins.set": set,
    "collections.OrderedDict": OrderedDict,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.Tensor": _PlainType,
    "torch.nn.parameter.Parameter": _PlainType,
}
