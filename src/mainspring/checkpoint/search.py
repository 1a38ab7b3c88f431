"""Which checkpoint a run goes on from: the newest one that is whole. What is not is named, and moved aside."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mainspring.checkpoint.folders import checkpoint_step, sort_checkpoints
from mainspring.checkpoint.manifest import read_manifest, verify
from mainspring.checkpoint.names import TRAINER_STATE_NAME
from mainspring.errors import CheckpointError

logger = logging.getLogger(__name__)

# What a rename answers where somebody took the new name in between.
_NAME_IS_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


@dataclass(frozen=True)
class Search:
    """What a search came to.

    Attributes:
        folder: The newest checkpoint that is valid; None: there is none.
        refused: Those that are newer and are not, with the reasons, newest first.
    """

    folder: Path | None
    refused: Sequence[tuple[Path, list[str]]]


def newest_valid(
    output_dir: str | os.PathLike[str], check: Callable[[str | os.PathLike[str]], list[str]] = verify
) -> Search:
    """Look for the newest valid checkpoint of a run; only as many are read as it takes to find it.

    Args:
        output_dir: The run's output folder; a missing one holds no checkpoints.
        check: Says why a checkpoint is not valid.

    Returns:
        What was found. The step that a checkpoint was written for makes it the newest, not its name, nor a time.
    """
    refused: list[tuple[Path, list[str]]] = []
    for folder in newest_first(output_dir):
        reasons = check(folder)
        if not reasons:
            return Search(folder, refused)
        refused.append((folder, reasons))
    return Search(None, refused)


def newest_first(output_dir: str | os.PathLike[str]) -> list[Path]:
    """List the checkpoints of a run by the step that they were written for, valid or not."""
    folders = [Path(path) for path in sort_checkpoints(output_dir)]
    return sorted(folders, key=lambda folder: (_step(folder), checkpoint_step(folder)), reverse=True)


def quarantine(folder: str | os.PathLike[str], reasons: Sequence[str]) -> Path | None:
    """Move a checkpoint that is not valid out of the way, and say so; its content stays, nothing is overwritten.

    Args:
        folder: The checkpoint.
        reasons: Why it is not valid.

    Returns:
        Where it is now: `checkpoint-20.damaged`, or `checkpoint-20.damaged.2` and so on. None: it could not be moved, and
        is where it was.
    """
    place, why = Path(folder), "; ".join(reasons)
    try:
        aside = _move_aside(place)
    except OSError as error:
        logger.warning("%s is not a valid checkpoint: %s. It could not be moved aside: %s", place, why, error)
        return None
    logger.warning("%s is not a valid checkpoint: %s. Moved aside to %s", place, why, aside.name)
    return aside


def _move_aside(place: Path) -> Path:
    for number in count(1):
        aside = place.with_name(f"{place.name}.damaged" + (f".{number}" if number > 1 else ""))
        if os.path.lexists(aside):
            continue
        try:
            return place.rename(aside)
        except OSError as error:
            if error.errno not in _NAME_IS_TAKEN:
                raise
    raise AssertionError("unreachable")


def _step(folder: Path) -> int:
    """The step that a checkpoint was written for; where that cannot be read, the one in its name."""
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            return manifest.facts.step
        step = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
    except (CheckpointError, OSError, ValueError, KeyError, TypeError, RecursionError):
        step = None
    return step if isinstance(step, int) else checkpoint_step(folder) or 0
