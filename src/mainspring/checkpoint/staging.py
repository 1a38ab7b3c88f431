"""How a checkpoint appears, or disappears, in one step.

Everything is written into a sibling of the final folder, flushed to the disk, then renamed into place. Whoever looks at
`checkpoint-20` finds all of it or nothing. Deleting is the same backwards: rename away first, then remove.

The folders in between have names that no reader takes for a checkpoint, `.checkpoint-20.<pid>.<role>`:

* `partial`: being written; worthless when its process is gone.
* `replaced`: the former content of a folder that is being written again; put back if a crash left its place empty. A
  checkpoint of another run is kept, as `checkpoint-20.other-run`.
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

from mainspring.checkpoint.absorb import take_over
from mainspring.checkpoint.aside import OTHER_RUN, move_aside
from mainspring.checkpoint.disk import files_below, fsync, fsync_folders
from mainspring.checkpoint.lock import holds
from mainspring.checkpoint.manifest import Facts, read_manifest, seal
from mainspring.errors import CheckpointError

logger = logging.getLogger(__name__)

_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<role>partial|replaced|deleted)")

# Stages that this process is writing now, by their real paths. In containers processes of different runs have the same
# ids, so that "the process lives" does not tell a stage that is being written from a leftover.
_open_stages: set[str] = set()


@contextmanager
def staged(folder: str | os.PathLike[str], facts: Facts | None = None) -> Iterator[Path]:
    """Write a checkpoint that appears whole, or not at all.

        with staged("out/checkpoint-20") as stage:
            save_model(model, stage)
            ...

    Files that already lie in `folder` (a subclass or a callback put them there first) are taken over unless they were
    written anew. Not taken over are what would contradict the new content: other weights of the whole model where new
    ones were written, optimizer, random states, progress and the like beside a new trainer state, the old manifest, and what
    another run's manifest lists. A checkpoint of another run is moved aside, not replaced.

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
        _open_stages.add(os.path.realpath(path))
        return cls(path, target)

    def commit(self, facts: Facts | None = None) -> None:
        """Force everything to the disk and put it in place; should that fail, the stage is still to be dropped.

        Args:
            facts: What the checkpoint is written for, as in `staged`.
        """
        take_over(self.target, self.path, None if facts is None else facts.run_id)
        if facts is None:
            for path in files_below(self.path):
                fsync(path)
        else:
            seal(self.path, facts)
        fsync_folders(self.path)
        _commit(self.path, self.target)
        _open_stages.discard(_real(self.path))

    def drop(self) -> None:
        """Remove the stage; the place it was for is as it was."""
        shutil.rmtree(self.path, ignore_errors=True)
        _open_stages.discard(_real(self.path))


def clean_stages(output_dir: str | os.PathLike[str]) -> list[str]:
    """Remove what processes that died while saving or deleting left behind; to be called once, before a run starts.

    A checkpoint that was being replaced, and whose place the crash left empty, is put back. Inside `locked`, whatever this
    process is not writing itself was left behind. Where no lock could be had, only what carries the number of a process
    that is gone counts: others may be at work.

    Args:
        output_dir: The run's output folder; it need not exist.

    Returns:
        The names of the leftovers that were dealt with.
    """
    root = Path(output_dir)
    done = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        match = _ASIDE.fullmatch(path.name)
        if match is None or _real(path) in _open_stages or not (holds(root) or _is_gone(int(match["pid"]))):
            continue
        place = root / match["name"]
        if match["role"] == "replaced" and not place.exists():
            logger.warning("putting back %s: the process that was replacing it died", place)
            path.rename(place)
        elif match["role"] == "replaced":
            _put_away(path, place)
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
    if _real(stage) in _open_stages:
        raise RuntimeError(f"{target} is already being written by this process")
    _remove(stage)
    stage.mkdir()
    return stage


def _sibling(target: Path, role: str) -> Path:
    return target.parent / f".{target.name}.{os.getpid()}.{role}"


def _real(path: Path) -> str:
    return os.path.join(os.path.realpath(path.parent), path.name)


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
    if replaces:
        _put_away(former, target)


def _put_away(former: Path, place: Path) -> None:
    """Remove what was replaced; what another run wrote is moved aside, where it can be found."""
    if not _of_different_runs(former, place):
        _remove(former)
        return
    try:
        aside = move_aside(former, place, OTHER_RUN)
    except OSError as error:
        logger.warning("%s held a checkpoint of another run, which is now %s: %s", place, former, error)
    else:
        logger.warning("%s held a checkpoint of another run: moved aside to %s", place, aside.name)


def _of_different_runs(former: Path, place: Path) -> bool:
    try:
        runs = [manifest.facts.run_id for path in (former, place) if (manifest := read_manifest(path)) is not None]
    except (CheckpointError, OSError):  # nobody can tell: it is kept
        return True
    return len(set(runs)) > 1


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            logger.warning("could not remove %s completely: delete it by hand", path)


def _is_gone(pid: int) -> bool:
    """Whether no process has this number, or only we, who know what is ours."""
    if pid == os.getpid():
        return True
    if os.name == "nt":  # where signal 0 is Ctrl-C, not a question
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, and belongs to somebody else
        return False
    return False
