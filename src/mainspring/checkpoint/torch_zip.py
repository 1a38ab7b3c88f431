"""The pickle inside a file of `torch.save`, found only where every reader of zip files would find the same one.

A zip file says several times where its parts are, and readers believe different ones of these. So a file is taken only
in the plain form that torch writes: nothing before, between or behind, and one pickle, at its very beginning.
"""

from __future__ import annotations

import os
import struct
import zipfile
from typing import IO

ZIP_START = b"PK\x03\x04"

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of torch's older, non-zip format begins: its magic number, pickled."""

_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")


def data_pickle(file: IO[bytes]) -> bytes:
    """Return the pickle of a file of `torch.save`.

    Args:
        file: The file, or a part of one, from its position 0 to its end.

    Raises:
        ValueError: It is not what torch writes; the text says what it holds instead.
    """
    try:
        if not _ends_plainly(file):
            raise ValueError("a zip directory that can be read in more than one way")
        with zipfile.ZipFile(file) as archive:
            return archive.read(_only_pickle(archive.infolist()))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"a damaged zip file ({error})") from error


def mentions_pickle(file: IO[bytes]) -> bool:
    """Whether a zip file of any kind has a record that is named as a pickle is."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(_is_pickle(name) for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return False


def _only_pickle(records: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    names = [record.orig_filename for record in records]  # the others are what extra fields make of them
    roots = {name.partition("/")[0] for name in names}
    pickles = [record for record in records if _is_pickle(record.orig_filename)]
    if len(pickles) != 1 or len(roots) != 1 or pickles[0].orig_filename != f"{roots.pop()}/data.pkl":
        raise ValueError("a zip file of another kind than torch.save writes")
    (found,) = pickles
    stored = found.compress_type == zipfile.ZIP_STORED and found.compress_size == found.file_size
    if found.header_offset or found.extra or found.flag_bits & 1 or not stored or found.filename != names[0]:
        raise ValueError("a pickle in another place or form than torch.save writes")
    return found


def _is_pickle(name: str) -> bool:
    return name.casefold().endswith(".pkl")  # torch's reader takes no notice of case


def _ends_plainly(file: IO[bytes]) -> bool:
    """Whether the file ends with its directory and nothing else, and that is where the directory says it is."""
    length = file.seek(0, os.SEEK_END)
    size = min(length, _END.size + _LOCATOR64.size + _END64.size)
    file.seek(length - size)
    tail = file.read(size)
    if len(tail) < _END.size:
        return False
    magic, _, _, _, count, extent, offset, comment = _END.unpack(tail[-_END.size :])
    if magic != b"PK\x05\x06" or comment:
        return False
    locator = tail[-_END.size - _LOCATOR64.size : -_END.size]
    if not locator.startswith(b"PK\x06\x07"):
        return bool(offset + extent == length - _END.size)
    if len(tail) < size or size < _END.size + _LOCATOR64.size + _END64.size:
        return False
    magic, _, _, _, _, _, _, count64, extent64, offset64 = _END64.unpack(tail[: _END64.size])
    _, _, where, _ = _LOCATOR64.unpack(locator)
    agree = all(
        old in (new, limit)
        for old, new, limit in ((count, count64, 0xFFFF), (extent, extent64, 2**32 - 1), (offset, offset64, 2**32 - 1))
    )
    return bool(magic == b"PK\x06\x06" and agree and where == length - size == offset64 + extent64)
