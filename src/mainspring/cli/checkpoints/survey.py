"""What is known about the checkpoints of a run without loading any: manifests, sizes, the trainer's state."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mainspring.checkpoint import MANIFEST_NAME, TRAINER_STATE_NAME, Manifest, newest_first, read_manifest
from mainspring.checkpoint.aside import kind_of
from mainspring.checkpoint.disk import files_below
from mainspring.errors import CheckpointError


@dataclass(frozen=True)
class Entry:
    """One checkpoint.

    Attributes:
        folder: Where it is.
        manifest: Its manifest; None: there is none, or none that can be read.
        state: The content of its trainer state, as far as it can be read.
        reasons: Why it is not valid.
    """

    folder: Path
    manifest: Manifest | None
    state: dict[str, Any]
    reasons: list[str]

    @property
    def step(self) -> int | None:
        """Updates done."""
        return self.state.get("global_step") if self.manifest is None else self.manifest.facts.step

    @property
    def run(self) -> str | None:
        """The run that wrote it, where that is known."""
        return None if self.manifest is None else self.manifest.facts.run_id

    @property
    def metric(self) -> tuple[str, float] | None:
        """Name and value of what decides which checkpoint is the best, where it was evaluated here."""
        if self.manifest is None or self.manifest.facts.metric is None:
            return None
        return self.manifest.facts.metric_name or "metric", self.manifest.facts.metric

    @property
    def written(self) -> datetime:
        """When it was written; without a manifest, when its folder was last changed."""
        if self.manifest is not None:
            return datetime.fromisoformat(self.manifest.written_at)
        return datetime.fromtimestamp(self.folder.stat().st_mtime, timezone.utc)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in files_below(self.folder))


def survey(path: str, check: Callable[[Path], list[str]]) -> list[Entry]:
    """Look at the checkpoints in a folder, or at the one that it is.

    Args:
        path: A run's output folder, or a checkpoint.
        check: Says why a checkpoint is not valid.

    Returns:
        One entry for each: those of the run that wrote last come last, and of each run the last step.

    Raises:
        ValueError: There is no such folder.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{path} is not a folder")
    folders = [root] if is_checkpoint(root) else reversed(newest_first(root))
    return [Entry(folder, _manifest(folder), _state(folder), check(folder)) for folder in folders]


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is itself a checkpoint and not one that holds some."""
    return any((folder / name).is_file() for name in (MANIFEST_NAME, TRAINER_STATE_NAME))


def moved_aside(path: str) -> list[tuple[Path, str]]:
    """The folders in which checkpoints were kept that are none any more, and why they were moved (see `aside`)."""
    return [(folder, kind) for folder in sorted(Path(path).iterdir()) if (kind := kind_of(folder.name)) is not None]


def newest(entries: list[Entry]) -> Entry | None:
    """The one that a run would be resumed from."""
    return next((entry for entry in reversed(entries) if not entry.reasons), None)


def best(entries: list[Entry]) -> Entry | None:
    """The one with the best metric: the one that the newest names, else the last that was the best when it was written."""
    latest = newest(entries) or (entries[-1] if entries else None)
    if latest is None:
        return None
    named = latest.state.get("best_model_checkpoint")
    if isinstance(named, str):
        for entry in entries:
            if entry.folder.name == Path(named).name:
                return entry
    flagged = [entry for entry in entries if entry.run == latest.run and entry.manifest and entry.manifest.facts.best]
    return flagged[-1] if flagged else None


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except (CheckpointError, OSError):  # the check names it
        return None


def _state(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the check names it
        return {}
    return content if isinstance(content, dict) else {}
