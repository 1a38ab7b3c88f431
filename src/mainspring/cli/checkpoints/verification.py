"""``mainspring checkpoints verify``."""

from __future__ import annotations

from mainspring.checkpoint import verify
from mainspring.cli.answer import Answer
from mainspring.cli.checkpoints.survey import Entry, survey
from mainspring.cli.checkpoints.words import size_of


def verification(path: str) -> Answer:
    """Read every byte of the checkpoints in a folder, and say of each whether it is what was written.

    Args:
        path: A run's output folder, or a checkpoint.

    Raises:
        ValueError: There is none.
    """
    entries = survey(path, verify)
    if not entries:
        raise ValueError(f"no checkpoints in {path}")
    return Answer("\n".join(map(_sentence, entries)), status=int(any(entry.reasons for entry in entries)))


def _sentence(entry: Entry) -> str:
    name = entry.folder.resolve().name
    if entry.reasons:
        return "\n".join([f"{name}: damaged", *(f"  {reason}" for reason in entry.reasons)])
    if entry.manifest is None:
        return f"{name}: sound in structure; it has no manifest that its bytes could be compared with"
    return f"{name}: valid ({len(entry.manifest.files)} files, {size_of(entry.size)})"
