"""Which checkpoints a run's folder holds, in what order, and which of them rotation removes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from mainspring.checkpoint.manifest import Facts, read_manifest, verify
from mainspring.checkpoint.names import PREFIX_CHECKPOINT_DIR
from mainspring.checkpoint.staging import discard_aside
from mainspring.errors import CheckpointError

StrPath = str | os.PathLike[str]


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint of update `step`: `checkpoint-<step>`."""
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def checkpoint_step(folder: StrPath, checkpoint_prefix: str = PREFIX_CHECKPOINT_DIR) -> int | None:
    """Return the step in a checkpoint folder's name, or None when the name is not exactly `<prefix>-<digits>`."""
    found = re.fullmatch(re.escape(checkpoint_prefix) + r"-(\d+)", Path(folder).name)
    return int(found.group(1)) if found else None


def get_last_checkpoint(folder: StrPath) -> str | None:
    """Return the path of the checkpoint with the largest step in `folder`.

    Args:
        folder: A run's output folder. It need not exist.

    Returns:
        The path of its newest `checkpoint-<step>` directory, or None when there is none.
    """
    checkpoints = sort_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def sort_checkpoints(
    output_dir: StrPath,
    checkpoint_prefix: str = PREFIX_CHECKPOINT_DIR,
    use_mtime: bool = False,
    best_model_checkpoint: StrPath | None = None,
) -> list[str]:
    """List the checkpoint directories of a run, oldest first.

    Args:
        output_dir: The run's output folder; a missing one holds no checkpoints.
        checkpoint_prefix: What stands before `-<step>` in their names. Names with anything behind the digits
            (`checkpoint-20-backup`) are somebody's own folders and are not listed.
        use_mtime: Order by time of modification instead of by step. Where all times lie within a second (as after a copy,
            or on file systems that do not keep them) the step decides all the same.
        best_model_checkpoint: Moved to the place before the newest, so that deleting from the front spares it.

    Returns:
        Their paths, `output_dir` included.
    """
    root = Path(output_dir)
    steps: dict[Path, int] = {}
    for path in root.iterdir() if root.is_dir() else ():
        step = checkpoint_step(path, checkpoint_prefix)
        if step is not None and path.is_dir():
            steps[path] = step
    ordered = sorted(steps, key=lambda path: steps[path])
    if use_mtime and len(ordered) > 1:
        times = {path: path.stat().st_mtime for path in ordered}
        if max(times.values()) - min(times.values()) >= 1.0:
            ordered.sort(key=lambda path: times[path])
    if best_model_checkpoint is not None:
        best = [path for path in ordered[:-1] if _same_place(path, best_model_checkpoint)]
        others = [path for path in ordered[:-1] if path not in best]
        ordered = others + best + ordered[-1:]
    return [str(path) for path in ordered]


def rotate_checkpoints(
    output_dir: StrPath,
    save_total_limit: int | None = None,
    best_model_checkpoint: StrPath | None = None,
    use_mtime: bool = False,
    checkpoint_prefix: str = PREFIX_CHECKPOINT_DIR,
) -> list[str]:
    """Delete the oldest checkpoints of a run until `save_total_limit` are left.

    The newest and the best are never deleted, so two may stay where the limit is one.

    Args:
        output_dir: The run's output folder.
        save_total_limit: How many checkpoints may stay; None, zero and below: all.
        best_model_checkpoint: Path of the best checkpoint, which is spared.
        use_mtime: Take age from the time of modification instead of the step (see `sort_checkpoints`).
        checkpoint_prefix: What stands before `-<step>` in the folders' names.

    Returns:
        The deleted folders, oldest first.
    """
    if save_total_limit is None or save_total_limit <= 0:
        return []
    checkpoints = sort_checkpoints(output_dir, checkpoint_prefix, use_mtime)
    expendable = [path for path in checkpoints[:-1] if not _same_place(path, best_model_checkpoint)]
    surplus = len(checkpoints) - save_total_limit
    doomed = expendable[: max(surplus, 0)]
    for path in doomed:
        remove_checkpoint(path)
    return doomed


def prune(
    output_dir: StrPath,
    run_id: str,
    limit: int | None,
    protected: Collection[StrPath] = (),
    written: StrPath | None = None,
) -> list[str]:
    """Delete the oldest checkpoints of one run until `limit` are left; what says which, and how old, is their manifest.

    Never deleted are the newest, the last that was the best when it was written, the protected ones, and the only valid
    one, so that more than `limit` may stay. Those of other runs, of the reference, and those whose manifest cannot be read
    are neither counted nor touched.

    Args:
        output_dir: The run's output folder.
        run_id: The run.
        limit: How many checkpoints may stay; None, zero and below: all.
        protected: Others that must stay: what is being read, or known to be the best.
        written: The one that this process has just written; it stays, and is known to be valid. Without it, checkpoints are
            read until one that stays is found valid.

    Returns:
        The deleted folders, oldest first; one that could not be deleted is a warning.
    """
    doomed = prunable(output_dir, run_id, limit, protected, written)
    for path in doomed:
        remove_checkpoint(path)
    return [path for path in doomed if not os.path.lexists(path)]


def prunable(
    output_dir: StrPath,
    run_id: str,
    limit: int | None,
    protected: Collection[StrPath] = (),
    written: StrPath | None = None,
) -> list[str]:
    """Return the folders that `prune` would delete, oldest first. The arguments are its."""
    if limit is None or limit <= 0:
        return []
    own = _of_run(output_dir, run_id)
    newest, best = list(own)[-1:], [path for path, facts in own.items() if facts.best][-1:]
    spared = {os.path.realpath(path) for path in (*protected, *newest, *best, *([] if written is None else [written]))}
    expendable = [path for path in own if os.path.realpath(path) not in spared]
    doomed = expendable[: max(len(own) - limit, 0)]
    return _without_only_valid(list(own), doomed) if doomed and written is None else doomed


def checkpoints_of_run(output_dir: StrPath, run_id: str) -> list[str]:
    """List the checkpoints of one run by the step that they were written for, oldest first."""
    return list(_of_run(output_dir, run_id))


def _of_run(output_dir: StrPath, run_id: str) -> dict[str, Facts]:
    """The checkpoints of one run and what they were written for, by step, oldest first."""
    found = {}
    for path in sort_checkpoints(output_dir):
        try:
            manifest = read_manifest(path)
        except (CheckpointError, OSError):  # whose it is, nobody can tell
            continue
        if manifest is not None and manifest.facts.run_id == run_id:
            found[path] = manifest.facts
    return dict(sorted(found.items(), key=lambda item: item[1].step))


def _without_only_valid(own: list[str], doomed: list[str]) -> list[str]:
    """`doomed`, less its newest valid one where none of the others is valid."""
    if any(not verify(path) for path in reversed(own) if path not in doomed):
        return doomed
    only = next((path for path in reversed(doomed) if not verify(path)), None)
    return [path for path in doomed if path != only]


def remove_checkpoint(folder: StrPath) -> None:
    """Delete a checkpoint: it disappears from its name at once, and from the disk afterwards.

    A folder that cannot be deleted is left and named in a warning: housekeeping must not end a run.

    Args:
        folder: The checkpoint directory.
    """
    discard_aside(Path(folder))


def _same_place(path: StrPath, other: StrPath | None) -> bool:
    return other is not None and os.path.realpath(path) == os.path.realpath(other)
