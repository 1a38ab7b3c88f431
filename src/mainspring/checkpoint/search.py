"""Which checkpoint a run goes on from: the newest whole one of the run that wrote last. What is not whole is moved aside."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mainspring.checkpoint.aside import DAMAGED, move_aside
from mainspring.checkpoint.folders import checkpoint_step, sort_checkpoints
from mainspring.checkpoint.manifest import ours_without_manifest, read_manifest, verify
from mainspring.checkpoint.names import TRAINER_STATE_NAME
from mainspring.errors import CheckpointError

logger = logging.getLogger(__name__)

_NO_MANIFEST = ""


@dataclass(frozen=True)
class Search:
    """What a search came to.

    Attributes:
        folder: The newest checkpoint that is valid; None: there is none.
        refused: Those that are newer and are not, with the reasons, newest first.
        others: Those of other runs, newest first.
        place: The run that wrote the folder, and its step.
    """

    folder: Path | None
    refused: Sequence[tuple[Path, list[str]]]
    others: Sequence[Path] = ()
    place: tuple[str | None, int] | None = None


@dataclass(frozen=True)
class _Candidate:
    """What is known of a checkpoint before it is verified.

    Attributes:
        folder: Where it is.
        run: Who wrote it: a run's id, `_NO_MANIFEST` for the reference, None where that cannot be read.
        step: The step that it was written for; where that cannot be read, the one in its name.
        written: When, in seconds.
    """

    folder: Path
    run: str | None
    step: int
    written: float


def newest_valid(
    output_dir: str | os.PathLike[str],
    check: Callable[[str | os.PathLike[str]], list[str]] = verify,
    until: tuple[str | None, int] | None = None,
) -> Search:
    """Look for the newest valid checkpoint of the run that wrote last; only as many are read as it takes to find it.

    Args:
        output_dir: The run's output folder; a missing one holds no checkpoints.
        check: Says why a checkpoint is not valid.
        until: A run and a step: only checkpoints of that run count, up to that step.

    Returns:
        What was found. The step that a checkpoint was written for makes it the newest of its run, not its name, nor a time.
        Those of other runs are tried where that run has none.
    """
    refused: list[tuple[Path, list[str]]] = []
    candidates = _newest_first(output_dir)
    for one in candidates:
        if until is not None and (one.run != until[0] or one.step > until[1]):
            continue
        reasons = check(one.folder)
        if not reasons:
            others = [other.folder for other in candidates if _is_foreign(other, one)]
            return Search(one.folder, refused, others, (one.run, one.step))
        refused.append((one.folder, reasons))
    return Search(None, refused)


def newest_first(output_dir: str | os.PathLike[str]) -> list[Path]:
    """List the checkpoints in a folder, valid or not: the run that wrote last comes first, and of each run the last step."""
    return [candidate.folder for candidate in _newest_first(output_dir)]


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
        aside = move_aside(place, place, DAMAGED)
    except OSError as error:
        logger.warning("%s is not a valid checkpoint: %s. It could not be moved aside: %s", place, why, error)
        return None
    logger.warning("%s is not a valid checkpoint: %s. Moved aside to %s", place, why, aside.name)
    return aside


def _newest_first(output_dir: str | os.PathLike[str]) -> list[_Candidate]:
    found = [_candidate(Path(path)) for path in sort_checkpoints(output_dir)]
    last: dict[str, float] = {}
    for one in found:
        if one.run is not None:
            last[one.run] = max(one.written, last.get(one.run, one.written))
    latest = max(last.values(), default=0.0)

    def age(one: _Candidate) -> tuple[float, int, int]:
        # One that does not say whose it is counts with the run that wrote last, so that its damage is noticed.
        return latest if one.run is None else last[one.run], one.step, checkpoint_step(one.folder) or 0

    return sorted(found, key=age, reverse=True)


def _candidate(folder: Path) -> _Candidate:
    try:
        manifest = read_manifest(folder)
        if manifest is not None:
            facts = manifest.facts
            return _Candidate(folder, facts.run_id, facts.step, datetime.fromisoformat(manifest.written_at).timestamp())
        state = folder / TRAINER_STATE_NAME
        step = json.loads(state.read_text(encoding="utf-8"))["global_step"]
        if isinstance(step, int):
            run = None if ours_without_manifest(folder) else _NO_MANIFEST
            return _Candidate(folder, run, step, state.stat().st_mtime)
    except (CheckpointError, OSError, ValueError, KeyError, TypeError, RecursionError):  # the check says why
        logger.debug("%s does not say what it is", folder, exc_info=True)
    return _Candidate(folder, None, checkpoint_step(folder) or 0, 0.0)


def _is_foreign(other: _Candidate, chosen: _Candidate) -> bool:
    """Whether another run wrote it. A run that goes on from the reference's has those before it as its own past."""
    if other.run in (None, chosen.run):
        return False
    return other.run != _NO_MANIFEST or other.step > chosen.step
