"""``mainspring checkpoints list``."""

from __future__ import annotations

from mainspring.checkpoint import check_sizes, verify
from mainspring.checkpoint.aside import DAMAGED, OTHER_RUN
from mainspring.cli.answer import Answer
from mainspring.cli.checkpoints.survey import Entry, best, moved_aside, newest, survey
from mainspring.cli.checkpoints.words import age_of, size_of, table

_WHY = {DAMAGED: "it was not valid", OTHER_RUN: "another run wrote a checkpoint of its name"}
_RIGHT = (1, 2, 3, 4)  # step, age, size, metric


def listing(path: str, full: bool) -> Answer:
    """Return a table of the checkpoints in a folder.

    Args:
        path: A run's output folder, or a checkpoint.
        full: Whether to read every byte, and not only names and sizes.
    """
    entries = survey(path, verify if full else check_sizes)
    lines = [_table(entries)] if entries else [f"no checkpoints in {path}"]
    if entries and not full:
        lines.append("valid: as far as names and sizes tell; --full reads every byte")
    lines += [f"moved aside, as {_WHY[kind]}: {folder.name}" for folder, kind in moved_aside(path)]
    return Answer("\n".join(lines))


def _table(entries: list[Entry]) -> str:
    metrics = {entry.metric[0] for entry in entries if entry.metric}
    header = ["checkpoint", "step", "age", "size", metrics.pop() if len(metrics) == 1 else "metric", "", "valid"]
    marks = {id(newest(entries)): "newest"}
    champion = best(entries)
    marks[id(champion)] = "best, newest" if id(champion) in marks else "best"
    return table([header, *(_row(entry, marks.get(id(entry), "")) for entry in entries)], _RIGHT)


def _row(entry: Entry, mark: str) -> list[str]:
    return [
        entry.folder.resolve().name,
        "?" if entry.step is None else str(entry.step),
        age_of(entry.written),
        size_of(entry.size),
        "" if entry.metric is None else f"{entry.metric[1]:.6g}",
        mark,
        _validity(entry),
    ]


def _validity(entry: Entry) -> str:
    if not entry.reasons:
        return "yes" if entry.manifest is not None else "yes, without a manifest: only its structure is known"
    more = len(entry.reasons) - 1
    return f"no: {entry.reasons[0]}" + (f" (and {more} more)" if more else "")
