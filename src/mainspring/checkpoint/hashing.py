"""The size and the hash of a file: what a manifest knows it by."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xxhash

from mainspring.checkpoint.disk import fsync, in_threads

# Small enough that a piece is still in the processor's cache when it is hashed.
_CHUNK = 256 * 1024


@dataclass(frozen=True)
class FileRecord:
    """What a file must be to be the one that was written.

    Attributes:
        size: Bytes.
        xxh3: Its XXH3 hash of 64 bits, as 16 hexadecimal digits.
    """

    size: int
    xxh3: str


def record_file(path: Path) -> FileRecord:
    """Read a file and return its record."""
    size, digest = 0, xxhash.xxh3_64()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return FileRecord(size, digest.hexdigest())


@dataclass(frozen=True)
class _Noted:
    """A record, and when the file was changed last."""

    record: FileRecord
    changed_ns: int


_noted: dict[str, _Noted] = {}


def note_record(path: Path, record: FileRecord) -> None:
    """Take note of a file that another process has flushed and hashed, so that `record_and_flush` need not read it again."""
    status = path.stat()
    if status.st_size == record.size:
        _noted[os.path.realpath(path)] = _Noted(record, status.st_mtime_ns)


def _take_note(path: Path) -> FileRecord | None:
    """What was noted of a file, once, if nobody has touched it since."""
    noted = _noted.pop(os.path.realpath(path), None)
    return noted.record if noted is not None and path.stat().st_mtime_ns == noted.changed_ns else None


def record_and_flush(files: Mapping[str, Path]) -> dict[str, FileRecord]:
    """Force files to the disk, and return the record of each under its name.

    What was just written is read back from memory while the disk is busy with it, so that the hashes cost next to nothing.
    """
    noted = {name: _take_note(path) for name, path in files.items()}
    records: dict[str, FileRecord] = {name: record for name, record in noted.items() if record is not None}
    jobs: list[Callable[[], object]] = []
    # The largest first: the last thread to end then ends soonest.
    unread = [name for name in files if name not in records]
    for name in sorted(unread, key=lambda name: files[name].stat().st_size, reverse=True):
        jobs += [partial(fsync, files[name]), partial(_note, records, name, files[name])]
    in_threads(jobs)
    return records


def _note(records: dict[str, FileRecord], name: str, path: Path) -> None:
    records[name] = record_file(path)
