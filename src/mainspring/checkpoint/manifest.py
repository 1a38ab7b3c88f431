"""A checkpoint counts when its manifest says so: written last, with the hash of every file.

seal(stage, facts)      hash and flush everything, then write manifest.json
verify(folder)          why this is not what was written; [] where it is
reseal(folder)          after hooks that were allowed to change it
"""

from __future__ import annotations

import os
import platform
import stat
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from mainspring.checkpoint.disk import files_below, fsync, fsync_folders, in_threads
from mainspring.checkpoint.hashing import FileRecord, record_and_flush, record_file
from mainspring.checkpoint.manifest_text import Facts, Manifest, decode, encode
from mainspring.checkpoint.names import MANIFEST_NAME, PROGRESS_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_JSON
from mainspring.checkpoint.structure import check_structure
from mainspring.errors import CheckpointError

__all__ = [
    "MANIFEST_NAME",
    "Facts",
    "FileRecord",
    "Manifest",
    "check_sizes",
    "read_manifest",
    "reseal",
    "seal",
    "verify",
]

_PARTIAL_NAME = f"{MANIFEST_NAME}.partial"  # a new manifest on its way in; worthless when its process is gone
_LIBRARIES = ("mainspring", "torch", "numpy", "safetensors", "accelerate", "transformers", "peft", "datasets")
# The reference writes neither: a folder that holds one is ours, and without a manifest not a whole one.
_OURS_ALONE = (PROGRESS_NAME, TRAINING_ARGS_JSON)


def seal(stage: str | os.PathLike[str], facts: Facts) -> Manifest:
    """Force a checkpoint's files to the disk, then write its manifest, and force that too.

    Args:
        stage: The folder, in which nobody writes any more. Every regular file in it and its sub-folders is listed; symbolic
            links are not.
        facts: What it was written for.

    Returns:
        The manifest.

    Raises:
        OSError: A file cannot be read or flushed, or there is a `manifest.json` already.
    """
    root = Path(stage)
    return _write(root / MANIFEST_NAME, facts, record_and_flush(_files(root)))


def reseal(folder: str | os.PathLike[str]) -> Manifest | None:
    """Bring a manifest up to date after files were changed, added or deleted on purpose.

    Only files that were touched since the manifest was written are read. The new manifest takes the old one's place in one
    step; where nothing changed, nothing is written.

    Args:
        folder: A checkpoint that this process has just written.

    Returns:
        The manifest that now holds; None where there is none, and none was made.

    Raises:
        CheckpointError: The manifest is damaged.
        OSError: A file cannot be read, flushed or written; the old manifest is still there.
    """
    root = Path(folder)
    former = read_manifest(root)
    if former is None:
        return None
    files = _files(root)
    written = (root / MANIFEST_NAME).stat().st_mtime_ns
    touched = {name: path for name, path in files.items() if _is_touched(path, former.files.get(name), written)}
    kept = {name: record for name, record in former.files.items() if name in files and name not in touched}
    records = {**kept, **record_and_flush(touched)}
    if records == former.files:
        return former
    fsync_folders(root)
    new = root / _PARTIAL_NAME
    new.unlink(missing_ok=True)
    manifest = _write(new, former.facts, records)
    new.replace(root / MANIFEST_NAME)
    fsync(root)
    return manifest


def read_manifest(folder: str | os.PathLike[str]) -> Manifest | None:
    """Return a checkpoint's manifest, or None where there is none.

    Raises:
        CheckpointError: It cannot be read, is damaged, is not one of ours, or is of a version to come.
    """
    try:
        data = (Path(folder) / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{MANIFEST_NAME} cannot be read: {error}") from error
    return decode(data)


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Compare a checkpoint with what was written, byte for byte.

    Files that the manifest does not list are allowed. A checkpoint of the reference has no manifest: its structure is
    checked instead.

    Args:
        folder: A checkpoint directory, written here or by the reference.

    Returns:
        One sentence per reason why it does not count; empty where it does. The hashes are looked at only where every file
        has its size.
    """
    root = Path(folder)
    try:
        manifest, reasons = _outer_check(root)
    except CheckpointError as error:
        return [str(error)]
    return reasons or ([] if manifest is None else _inner_damage(root, manifest.files))


def check_sizes(folder: str | os.PathLike[str]) -> list[str]:
    """`verify` without reading the files: what their names and sizes tell.

    Args:
        folder: A checkpoint directory, written here or by the reference.

    Returns:
        As `verify`; a byte that was changed does not show.
    """
    try:
        return _outer_check(Path(folder))[1]
    except CheckpointError as error:
        return [str(error)]


# ---- writing ----


def _write(path: Path, facts: Facts, files: Mapping[str, FileRecord]) -> Manifest:
    """Write a manifest as the new file `path`, and force it to the disk."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    manifest = Manifest(facts, dict(sorted(files.items())), _versions(), now)
    with path.open("xb") as file:
        file.write(encode(manifest))
    fsync(path)
    return manifest


def _files(root: Path) -> dict[str, Path]:
    files = {path.relative_to(root).as_posix(): path for path in files_below(root)}
    return {name: path for name, path in files.items() if name not in (MANIFEST_NAME, _PARTIAL_NAME)}


def _is_touched(path: Path, record: FileRecord | None, written: int) -> bool:
    # The last change of the inode and not of the contents alone: a copy can keep its source's time of modification. Equal
    # times count as touched, since the clocks of file systems are coarse.
    status = path.stat()
    changed = max(status.st_ctime_ns, status.st_mtime_ns)
    return record is None or status.st_size != record.size or changed >= written


def _versions() -> dict[str, str]:
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in _LIBRARIES}
    return {"python": platform.python_version(), **{name: str(v) for name, v in versions.items() if v is not None}}


# ---- checking ----


def _outer_check(root: Path) -> tuple[Manifest | None, list[str]]:
    """The manifest, and what shows without reading the files; without a manifest all that can be known."""
    manifest = read_manifest(root)
    if manifest is None:
        return None, _without_manifest(root)
    reasons = [] if TRAINER_STATE_NAME in manifest.files else [f"{TRAINER_STATE_NAME} is missing"]
    return manifest, reasons + [
        f"{name} {why}" for name, one in manifest.files.items() if (why := _outer_damage(root, name, one))
    ]


def _without_manifest(root: Path) -> list[str]:
    ours = [name for name in _OURS_ALONE if os.path.lexists(root / name)]
    if ours:
        return [f"{MANIFEST_NAME} is missing beside {ours[0]}: it was not written to its end, or not by this library"]
    return check_structure(root)


def _outer_damage(root: Path, name: str, record: FileRecord) -> str | None:
    """What shows without reading the file."""
    path = root / name
    if not os.path.lexists(path):
        return "is missing"
    if os.path.realpath(path) != os.path.join(os.path.realpath(root), *name.split("/")):
        return "is a symbolic link, or lies behind one: its content can change by itself, so copy the file here"
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size != record.size:
        return f"has {status.st_size} bytes, and {record.size} were written"
    return None


def _inner_damage(root: Path, files: Mapping[str, FileRecord]) -> list[str]:
    """What shows when every file is read."""
    reasons: dict[str, str] = {}
    in_threads([partial(_note_damage, reasons, root, name, record) for name, record in files.items()])
    return [f"{name} {reasons[name]}" for name in files if name in reasons]


def _note_damage(reasons: dict[str, str], root: Path, name: str, record: FileRecord) -> None:
    try:
        if record_file(root / name) != record:
            reasons[name] = "is not what was written: its hash differs"
    except OSError as error:
        reasons[name] = f"cannot be read: {error}"
