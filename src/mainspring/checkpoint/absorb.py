"""What a new checkpoint takes over from the folder that has its name already.

A subclass or a callback may put files into `checkpoint-20` before the trainer writes it; they belong to it. A former
checkpoint of the same step may lie there as well, of this run or of another.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from mainspring.checkpoint.manifest import read_manifest, unchanged_files
from mainspring.checkpoint.names import (
    CALLBACKS_NAME,
    EMA_NAME,
    MANIFEST_NAME,
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    PROGRESS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    SNAPSHOTS_NAME,
    TRAINER_STATE_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from mainspring.errors import CheckpointError

_WHOLE_MODEL = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
_WEIGHT_FILE = r"(model.*\.safetensors|pytorch_model.*\.bin)(\.index\.json)?"
_RUN_STATE = (
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    SCHEDULER_NAME,
    SCALER_NAME,
    PROGRESS_NAME,
    CALLBACKS_NAME,
    EMA_NAME,
    SNAPSHOTS_NAME,
)
_DATA_POSITIONS = r"data_position(_\d+)?\.pt"
_RANDOM_STATES = r"rng_state(_\d+)?\.pth"  # one per process: a former run may have had more of them


def take_over(target: Path, stage: Path, run_id: str | None) -> None:
    """Put into a stage what lies in its target and belongs to the new checkpoint; the target stays as it is.

    Args:
        target: The folder that has the checkpoint's name; it need not exist.
        stage: The new checkpoint; what it has is not replaced.
        run_id: The run that writes it; None: nobody says so, and whose files lie in the target is not asked.
    """
    superseded = _superseded(stage)
    theirs = frozenset() if run_id is None else _of_another_run(target, run_id)
    _absorb(target, stage, lambda name: bool(superseded.fullmatch(name)) or name in theirs)


def _superseded(stage: Path) -> re.Pattern[str]:
    """Return the names of top-level files that would contradict what is in `stage`."""
    patterns = [re.escape(MANIFEST_NAME)]
    if any((stage / name).exists() for name in _WHOLE_MODEL):
        patterns.append(_WEIGHT_FILE)
    if (stage / TRAINER_STATE_NAME).exists():
        patterns += [re.escape(name) for name in _RUN_STATE] + [_RANDOM_STATES, _DATA_POSITIONS]
    return re.compile("(?!.*/)(?:" + "|".join(f"(?:{pattern})" for pattern in patterns) + ")")


def _of_another_run(target: Path, run_id: str) -> Collection[str]:
    """The files in `target` that another run wrote: those that its manifest lists and that are still what it says."""
    try:
        manifest = read_manifest(target)
    except CheckpointError:  # whose they are, nobody can tell: the folder is kept whole, and nothing of it goes on
        return frozenset(path.relative_to(target).as_posix() for path in target.rglob("*"))
    if manifest is None or manifest.facts.run_id == run_id:
        return frozenset()
    return unchanged_files(target, manifest)


def _absorb(source: Path, stage: Path, stays: Callable[[str], bool], inside: str = "") -> None:
    for path in source.iterdir() if source.is_dir() else ():
        name = inside + path.name
        if path.is_dir() and not path.is_symlink():
            _absorb(path, stage / path.name, stays, f"{name}/")
        elif not stays(name) and not os.path.lexists(stage / path.name):
            stage.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path, stage / path.name)


def _link_or_copy(source: Path, target: Path) -> None:
    # A second name for the same bytes costs nothing and leaves the old folder whole until the rename. Not every file
    # system has hard links.
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)
