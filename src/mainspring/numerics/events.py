"""What is told and written down of an update that was not made because of its numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mainspring.errors import printed
from mainspring.numerics.decision import Decision, printed_number

EVENTS_NAME = "nonfinite.jsonl"
"""The file in `output_dir` that has a line for every such update."""


@dataclass(frozen=True)
class Found:
    """What one process knows of the update.

    Attributes:
        losses: Of its micro-batches.
        indices: The samples of each in the data set; None where their order is not of our making.
        report: What made them so, in words; "" where nothing is known.
        explains: Whether that names a place.
    """

    losses: Sequence[float]
    indices: Sequence[Sequence[int]] | None
    report: str = ""
    explains: bool = False


def explained(every: Sequence[Found]) -> list[Found]:
    """What each process knows, but that some could not find what others have found."""
    known = any(found.explains for found in every)
    return [replace(found, report="") if known and not found.explains else found for found in every]


@dataclass(frozen=True)
class Event:
    """An update that was not made.

    Attributes:
        step: The update that it would have been, from 1.
        epoch: The epoch, from 0.
        batches: The numbers of its micro-batches in the epoch, from 0.
        decision: What was done, and why.
        grad_norm: Its gradient norm, or None.
        found: What each process knows, by rank.
        back_to: The update that training went back to, or None.
    """

    step: int
    epoch: int
    batches: Sequence[int]
    decision: Decision
    grad_norm: float | None
    found: Sequence[Found]
    back_to: int | None = None

    def line(self) -> str:
        """The event as a line of JSON."""
        record: dict[str, Any] = {
            "step": self.step,
            "epoch": self.epoch,
            "batches": list(self.batches),
            "indices": [found.indices for found in self.found],
            "losses": [[printed_number(loss) for loss in found.losses] for found in self.found],
            "loss": printed_number(self.decision.verdict.loss),
            "grad_norm": None if self.grad_norm is None else printed_number(self.grad_norm),
            "cause": self.decision.cause,
            "action": self.decision.action,
        }
        if self.back_to is not None:
            record["back_to"] = self.back_to
        if any(found.report for found in self.found):
            record["reports"] = [found.report for found in self.found]
        return json.dumps(record)


def describe(event: Event) -> str:
    """The event in words: what, where, which samples, and what caused it."""
    verdict, cause = event.decision.verdict, event.decision.cause
    what = "is not finite" if cause == "nonfinite" else "has a loss far above the ones before"
    norm = "" if event.grad_norm is None else f", gradient norm {event.grad_norm:g}"
    lines = [f"update {event.step} {what}: loss {verdict.loss:g}{norm}; {_done(event)}", f"  {_place(event)}"]
    for rank, found in enumerate(event.found):
        which = f" of process {rank}" if len(event.found) > 1 else ""
        if found.indices is not None:
            lines.append(f"  samples{which}: {printed([list(indices) for indices in found.indices])}")
        if len(event.found) > 1 or len(found.losses) > 1:
            lines.append(f"  losses{which}: {', '.join(f'{loss:g}' for loss in found.losses)}")
        lines += [f"  {line}" for line in found.report.splitlines()]
    return "\n".join(lines)


def _done(event: Event) -> str:
    decision = event.decision
    if decision.limit is not None:
        option, value = decision.limit
        return f"the run ends, as {option}={value} were not made already"
    if decision.action == "raise":
        return "on_nonfinite='raise' ends the run before anything is changed"
    return "it is left out" if event.back_to is None else f"training goes back to update {event.back_to}"


def _place(event: Event) -> str:
    first, last = event.batches[0], event.batches[-1]
    batches = f"batch {first}" if first == last else f"batches {first} to {last}"
    return f"{batches} of epoch {event.epoch}, both counted from 0"


def gone_back(event: Event, to: int) -> Event:
    """The event, after which training went back to update `to`."""
    return replace(event, back_to=to)


def write_event(folder: str, event: Event) -> None:
    """Append the event to the file in `folder`, and see to it that it is on the disk.

    Raises:
        OSError: It could not be written.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, EVENTS_NAME), "a", encoding="utf-8") as file:
        file.write(event.line() + "\n")
        file.flush()
        os.fsync(file.fileno())
