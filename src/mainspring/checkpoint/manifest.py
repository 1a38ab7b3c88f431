"""A checkpoint counts when its manifest says so: written last, with the hash of every file.

seal(stage, facts)      hash and flush everything, then write manifest.json
verify(folder)          why this does not count, for people; [] where it does
damage(folder)          the same, for decisions: what only could not be read is an error
reseal(folder)          after hooks that were allowed to change it
"""

from __future__ import annotations

import os
import platform
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from mainspring.checkpoint.disk import files_below, fsync, fsync_folders, in_threads, named, tells_nothing
from mainspring.checkpoint.hashing import FileRecord, record_and_flush, record_file
from mainspring.checkpoint.manifest_text import Facts, Manifest, NewerManifestError, decode, encode
from mainspring.checkpoint.names import MANIFEST_NAME, PROGRESS_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_JSON
from mainspring.checkpoint.structure import check_structure
from mainspring.errors import CheckpointError

__all__ = [
    "MANIFEST_NAME",
    "Facts",
    "FileRecord",
    "Manifest",
    "NewerManifestError",
    "check_sizes",
    "damage",
    "library_versions",
    "ours_without_manifest",
    "read_manifest",
    "reseal",
    "seal",
    "unchanged_files",
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
        CheckpointError: It is damaged, is not one of ours, or is of a version to come (`NewerManifestError`).
        OSError: The system would not read it, which says nothing of what it holds.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        with named(path):
            data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        if tells_nothing(error):
            raise
        raise CheckpointError(f"{MANIFEST_NAME} cannot be read: {error}") from error
    return decode(data)


def ours_without_manifest(folder: str | os.PathLike[str]) -> list[str]:
    """Return the files of a folder that only this library writes, if it lacks the manifest that belongs to them."""
    root = Path(folder)
    if os.path.lexists(root / MANIFEST_NAME):
        return []
    return [name for name in _OURS_ALONE if os.path.lexists(root / name)]


def unchanged_files(folder: str | os.PathLike[str], manifest: Manifest) -> frozenset[str]:
    """Return the files that a manifest lists and that are still what it says; only what was touched since is read.

    Raises:
        OSError: A file cannot be read.
    """
    root = Path(folder)
    written, files = (root / MANIFEST_NAME).stat().st_mtime_ns, _files(root)
    listed = {name: record for name, record in manifest.files.items() if name in files}
    return frozenset(
        name
        for name, record in listed.items()
        if not _is_touched(files[name], record, written) or record_file(files[name]) == record
    )


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a checkpoint's content may depend on, as far as imported."""
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in _LIBRARIES}
    return {"python": platform.python_version(), **{name: str(v) for name, v in versions.items() if v is not None}}


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
    return _for_people(lambda: [str(finding) for finding in _findings(Path(folder))])


def damage(folder: str | os.PathLike[str]) -> list[str]:
    """`verify` for who acts upon the answer: what says nothing of the checkpoint is no damage, but an error.

    Args:
        folder: A checkpoint directory, written here or by the reference.

    Returns:
        As `verify`.

    Raises:
        OSError: The system would not read a file, which the error names: the disk, the network or permissions say why.
        NewerManifestError: A newer version wrote it.
    """
    try:
        findings = _findings(Path(folder))
    except NewerManifestError as error:
        raise NewerManifestError(f"{os.fspath(folder)}: {error}") from None
    except CheckpointError as error:
        return [str(error)]
    for finding in findings:
        if finding.error is not None:
            raise finding.error
    return [str(finding) for finding in findings]


def check_sizes(folder: str | os.PathLike[str]) -> list[str]:
    """`verify` without reading the files: what their names and sizes tell.

    Args:
        folder: A checkpoint directory, written here or by the reference.

    Returns:
        As `verify`; a byte that was changed does not show.
    """
    return _for_people(lambda: _outer_check(Path(folder))[1])


@dataclass(frozen=True)
class _Finding:
    """One reason why a checkpoint does not count, or, with an error that says nothing of it, cannot be judged."""

    text: str
    error: OSError | None = None

    def __str__(self) -> str:
        return self.text


def _findings(root: Path) -> list[_Finding]:
    manifest, reasons = _outer_check(root)
    if reasons or manifest is None:
        return [_Finding(reason) for reason in reasons]
    return _inner_damage(root, manifest.files)


def _for_people(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except CheckpointError as error:
        return [str(error)]
    except OSError as error:
        return [f"{error.filename or 'a file'} cannot be read: {error.strerror or error}"]


# ---- writing ----


def _write(path: Path, facts: Facts, files: Mapping[str, FileRecord]) -> Manifest:
    """Write a manifest as the new file `path`, and force it to the disk."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    manifest = Manifest(facts, dict(sorted(files.items())), library_versions(), now)
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
    if ours := ours_without_manifest(root):
        return [f"{MANIFEST_NAME} is missing beside {ours[0]}: it was not written to its end, or not by this library"]
    return check_structure(root)


def _outer_damage(root: Path, name: str, record: FileRecord) -> str | None:
    """What shows without reading the file."""
    path = root / name
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    if os.path.realpath(path) != os.path.join(os.path.realpath(root), *name.split("/")):
        return "is a symbolic link, or lies behind one: its content can change by itself, so copy the file here"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size != record.size:
        return f"has {status.st_size} bytes, and {record.size} were written"
    return None


def _inner_damage(root: Path, files: Mapping[str, FileRecord]) -> list[_Finding]:
    """What shows when every file is read."""
    found: dict[str, _Finding] = {}
    in_threads([partial(_note_damage, found, root, name, record) for name, record in files.items()])
    return [found[name] for name in files if name in found]


def _note_damage(found: dict[str, _Finding], root: Path, name: str, record: FileRecord) -> None:
    try:
        with named(root / name):
            if record_file(root / name) != record:
                found[name] = _Finding(f"{name} is not what was written: its hash differs")
    except OSError as error:
        text = f"{name} cannot be read: [Errno {error.errno}] {error.strerror}"
        found[name] = _Finding(text, error if tells_nothing(error) else None)
