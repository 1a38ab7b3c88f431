"""How a checkpoint appears, or disappears, in one step.

Everything is written into a sibling of the final folder, flushed to the disk, then renamed into place. Whoever looks at
`checkpoint-20` finds all of it or nothing. Deleting is the same backwards: rename away first, then remove.

The folders in between have names that no reader takes for a checkpoint, `.checkpoint-20.<pid>.<role>`:

* `partial`: being written; worthless when its process is gone.
* `replaced`: the former content of a folder that is being written again; put back if a crash left its place empty.
* `deleted`: on its way out.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mainspring.checkpoint.names import (
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    PROGRESS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

logger = logging.getLogger(__name__)

_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<role>partial|replaced|deleted)")
_WHOLE_MODEL = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
_WEIGHT_FILE = re.compile(r"(model.*\.safetensors|pytorch_model.*\.bin)(\.index\.json)?")
_RUN_STATE = frozenset({OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME, SCALER_NAME, PROGRESS_NAME})

# Stages that this process is writing now: a leftover of an earlier process may carry the same process id (in containers
# it usually does), so that "the process lives" alone would not tell them apart.
_open_stages: set[Path] = set()


@contextmanager
def staged(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a checkpoint that appears whole, or not at all.

        with staged("out/checkpoint-20") as stage:
            save_model(model, stage)
            ...

    Files that already lie in `folder` (a subclass or a callback put them there first) are taken over unless they were
    written anew. Not taken over are what would contradict the new content: other weights of the whole model where new
    ones were written, and optimizer, scheduler, scaler and progress beside a new trainer state.

    Args:
        folder: The final place; its parents are created.

    Yields:
        The empty stage to write into.

    Raises:
        BaseException: Whatever the body raised, `KeyboardInterrupt` included, after the stage was removed; `folder` is then
            as it was before.
    """
    target = Path(folder)
    stage = _new_stage(target)
    _open_stages.add(stage)
    try:
        yield stage
        _absorb(target, stage, _superseded(stage))
        _flush(stage)
        _commit(stage, target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    finally:
        _open_stages.discard(stage)


def clean_stages(output_dir: str | os.PathLike[str]) -> list[str]:
    """Remove what processes that died while saving or deleting left behind; to be called once, before a run starts.

    A checkpoint that was being replaced, and whose place the crash left empty, is put back.

    Args:
        output_dir: The run's output folder; it need not exist.

    Returns:
        The names of the leftovers that were dealt with.
    """
    root = Path(output_dir)
    done = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        match = _ASIDE.fullmatch(path.name)
        if match is None or not _is_abandoned(path, int(match["pid"])):
            continue
        place = root / match["name"]
        if match["role"] == "replaced" and not place.exists():
            logger.warning("putting back %s: the process that was replacing it died", place)
            path.rename(place)
        else:
            logger.info("removing %s, left behind by a process that died", path)
            _remove(path)
        done.append(path.name)
    return done


def discard_aside(folder: Path) -> None:
    """Rename `folder` out of its name, then remove it; failing at either is a warning, not an error."""
    aside = _sibling(folder, "deleted")
    try:
        _remove(aside)
        folder.rename(aside)
    except OSError as error:
        logger.warning("could not delete %s: %s", folder, error)
        return
    _remove(aside)


def _new_stage(target: Path) -> Path:
    stage = _sibling(target, "partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    if stage in _open_stages:
        raise RuntimeError(f"{target} is already being written by this process")
    _remove(stage)
    stage.mkdir()
    return stage


def _sibling(target: Path, role: str) -> Path:
    return target.parent / f".{target.name}.{os.getpid()}.{role}"


def _superseded(stage: Path) -> re.Pattern[str]:
    """Return the names of top-level files that must not be taken over into `stage`."""
    patterns = []
    if any((stage / name).exists() for name in _WHOLE_MODEL):
        patterns.append(_WEIGHT_FILE.pattern)
    if (stage / TRAINER_STATE_NAME).exists():
        patterns += [re.escape(name) for name in sorted(_RUN_STATE)]
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)")


def _absorb(source: Path, stage: Path, skip: re.Pattern[str]) -> None:
    """Take over into `stage` what lies in `source` and is not in it yet; `source` itself stays as it is."""
    for path in source.iterdir() if source.is_dir() else ():
        taken = stage / path.name
        if skip.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            taken.mkdir(exist_ok=True)
            _absorb(path, taken, re.compile(r"(?!)"))
        elif not os.path.lexists(taken):
            _link_or_copy(path, taken)


def _link_or_copy(source: Path, target: Path) -> None:
    # A second name for the same bytes costs nothing and leaves the old folder whole until the rename. Not every file
    # system has hard links.
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def _flush(stage: Path) -> None:
    """Force every file and folder below `stage` to the disk, contents before names."""
    for root, _, files in os.walk(stage, topdown=False):
        for name in files:
            path = Path(root, name)
            if not path.is_symlink():
                _fsync(path)
        _fsync(Path(root))


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and its renames are journalled
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _commit(stage: Path, target: Path) -> None:
    """Give the finished stage its name: one rename, or two where an older folder has the name."""
    former = _sibling(target, "replaced")
    if os.path.lexists(target):
        _remove(former)
        target.rename(former)
    try:
        stage.rename(target)
    except BaseException:
        if os.path.lexists(former) and not os.path.lexists(target):
            former.rename(target)
        raise
    _fsync(target.parent)
    _remove(former)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            logger.warning("could not remove %s completely: delete it by hand", path)


def _is_abandoned(path: Path, pid: int) -> bool:
    if pid == os.getpid():
        return path not in _open_stages
    if os.name == "nt":  # where signal 0 is Ctrl-C, not a question
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, and belongs to somebody else
        return False
    return False
