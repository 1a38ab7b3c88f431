"""``mainspring checkpoints prune``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mainspring.checkpoint import check_sizes, locked, prunable, remove_checkpoint
from mainspring.cli.answer import Answer
from mainspring.cli.checkpoints.survey import Entry, best, is_checkpoint, newest, survey
from mainspring.cli.checkpoints.words import size_of


@dataclass(frozen=True)
class _Plan:
    """What is to become of the checkpoints in a folder; of the run that wrote the newest, and of the rest."""

    doomed: list[Entry]
    kept: list[str]
    others: list[str]


def pruning(path: str, keep: int, dry_run: bool) -> Answer:
    """Delete the oldest checkpoints of the run that wrote the newest one.

    The best, the newest and the only valid one stay, so that more may be left than was asked for; those of other runs, and
    those without a manifest, are neither counted nor touched.

    Args:
        path: The run's output folder.
        keep: How many of them to keep, at least.
        dry_run: Only say what would be deleted.

    Raises:
        ValueError: There is no such folder, or no checkpoint in it that says whose it is.
        RuntimeError: A run is at work in it.
    """
    if not Path(path).is_dir() or is_checkpoint(Path(path)):
        raise ValueError(f"{path} is not the output folder of a run")
    if dry_run:
        plan = _plan(path, keep)
        lines = [f"would delete {_name(entry)} ({size_of(entry.size)})" for entry in plan.doomed]
        return Answer("\n".join([*(lines or ["nothing to delete"]), *_rest(plan)]))
    with locked(path):  # nobody begins to read one while it is deleted
        return _carry_out(_plan(path, keep))


def _plan(path: str, keep: int) -> _Plan:
    entries = survey(path, check_sizes)
    run = next((entry.run for entry in reversed(entries) if entry.run is not None), None)
    if run is None:
        raise ValueError(f"no checkpoint in {path} has a manifest that says which run wrote it: nothing is deleted")
    champion, latest = best(entries), newest(entries)
    spared = [entry.folder for entry in (champion, latest) if entry is not None]
    doomed = set(map(os.path.realpath, prunable(path, run, keep, spared)))
    plan = _Plan([], [], [])
    for entry in entries:
        if os.path.realpath(entry.folder) in doomed:
            plan.doomed.append(entry)
        elif entry.run is None:
            plan.others.append(f"{_name(entry)} (no manifest)")
        elif entry.run != run:
            plan.others.append(f"{_name(entry)} (another run's)")
        else:
            marks = [mark for mark, one in (("best", champion), ("newest", latest)) if one is entry]
            marks += ["not valid"] if entry.reasons else []
            plan.kept.append(_name(entry) + (f" ({', '.join(marks)})" if marks else ""))
    return plan


def _carry_out(plan: _Plan) -> Answer:
    lines = []
    failed = False
    for entry in plan.doomed:
        size = size_of(entry.size)
        remove_checkpoint(entry.folder)
        there = os.path.lexists(entry.folder)
        failed = failed or there
        lines.append(f"could not delete {_name(entry)}" if there else f"deleted {_name(entry)} ({size})")
    return Answer("\n".join([*(lines or ["nothing to delete"]), *_rest(plan)]), status=int(failed))


def _rest(plan: _Plan) -> list[str]:
    groups = (("kept", plan.kept), ("left alone", plan.others))
    return [f"{word}: {', '.join(names)}" for word, names in groups if names]


def _name(entry: Entry) -> str:
    return entry.folder.name
