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
from dataclasses import dataclass
from pathlib import Path

from mainspring.checkpoint.disk import files_below, fsync, fsync_folders
from mainspring.checkpoint.manifest import Facts, seal
from mainspring.checkpoint.names import (
    CALLBACKS_NAME,
    DATA_POSITION_NAME,
    MANIFEST_NAME,
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
_RUN_STATE = frozenset(
    {OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME, SCALER_NAME, PROGRESS_NAME, CALLBACKS_NAME, DATA_POSITION_NAME}
)

# Stages that this process is writing now: a leftover of an earlier process may carry the same process id (in containers
# it usually does), so that "the process lives" alone would not tell them apart.
_open_stages: set[Path] = set()


@contextmanager
def staged(folder: str | os.PathLike[str], facts: Facts | None = None) -> Iterator[Path]:
    """Write a checkpoint that appears whole, or not at all.

        with staged("out/checkpoint-20") as stage:
            save_model(model, stage)
            ...

    Files that already lie in `folder` (a subclass or a callback put them there first) are taken over unless they were
    written anew. Not taken over are what would contradict the new content: other weights of the whole model where new
    ones were written, optimizer, scheduler, scaler and progress beside a new trainer state, and the old manifest.

    Args:
        folder: The final place; its parents are created.
        facts: What it is written for: it gets a manifest. None: it gets none, and does not count as a checkpoint of ours.

    Yields:
        The empty stage to write into.

    Raises:
        BaseException: Whatever the body raised, `KeyboardInterrupt` included, after the stage was removed; `folder` is then
            as it was before.
    """
    stage = Stage.open(folder)
    try:
        yield stage.path
        stage.commit(facts)
    except BaseException:
        stage.drop()
        raise


@dataclass(frozen=True)
class Stage:
    """The steps of `staged` one by one: `open`, then either `commit` or `drop`.

    Attributes:
        path: The folder to write into.
        target: Where it goes.
    """

    path: Path
    target: Path

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Stage:
        """Make an empty stage for `folder`; its parents are created."""
        target = Path(folder).absolute()  # a stage may be committed after the program went to another folder
        path = _new_stage(target)
        _open_stages.add(path)
        return cls(path, target)

    def commit(self, facts: Facts | None = None) -> None:
        """Force everything to the disk and put it in place; should that fail, the stage is still to be dropped.

        Args:
            facts: What the checkpoint is written for, as in `staged`.
        """
        _absorb(self.target, self.path, _superseded(self.path))
        if facts is None:
            for path in files_below(self.path):
                fsync(path)
        else:
            seal(self.path, facts)
        fsync_folders(self.path)
        _commit(self.path, self.target)
        _open_stages.discard(self.path)

    def drop(self) -> None:
        """Remove the stage; the place it was for is as it was."""
        shutil.rmtree(self.path, ignore_errors=True)
        _open_stages.discard(self.path)


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
    patterns = [re.escape(MANIFEST_NAME)]
    if any((stage / name).exists() for name in _WHOLE_MODEL):
        patterns.append(_WEIGHT_FILE.pattern)
    if (stage / TRAINER_STATE_NAME).exists():
        patterns += [re.escape(name) for name in sorted(_RUN_STATE)]
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


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


def _commit(stage: Path, target: Path) -> None:
    """Give the finished stage its name: one rename, or two where an older folder has the name."""
    former = _sibling(target, "replaced")
    replaces = os.path.lexists(target)
    if replaces:
        _remove(former)
    try:
        if replaces:
            target.rename(former)
        stage.rename(target)
        fsync(target.parent)
    except BaseException:
        if not os.path.lexists(stage):  # it is in place, but perhaps not for good
            target.rename(stage)
        if replaces and not os.path.lexists(target):
            former.rename(target)
        raise
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
        return path.absolute() not in _open_stages
    if os.name == "nt":  # where signal 0 is Ctrl-C, not a question
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, and belongs to somebody else
        return False
    return False
