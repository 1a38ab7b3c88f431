"""Run every scenario on this process of several, for both libraries, and save what each produced."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.distributed.scenarios import SCENARIOS, Scenario
from tests.helpers.sides import REFERENCE, SUBJECT, Side
from tests.parity.harness import Task, Trace, run


def side_of(scenario: Scenario) -> Side:
    """The library under test, with the reference's numbers or with its own defaults."""
    return Side(SUBJECT.name, SUBJECT.package, {}) if scenario.default_numbers else SUBJECT


COMMITS: Counter[str] = Counter()
"""How often this process gave a checkpoint folder its final name, by the folder's name."""


def _note_commit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.rename" and re.fullmatch(r"checkpoint-\d+", Path(os.fsdecode(arguments[1])).name):
        COMMITS[Path(os.fsdecode(arguments[1])).name] += 1


def watched(task: Task, side: Side, facts: dict[str, Any]) -> Any:
    """The task's Trainer class, made to note in `facts` what it says about the processes."""
    base: Any = task.trainer(side)

    class Watched(base):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            facts.update(
                world_size=self.args.world_size,
                rank=self.args.process_index,
                num_processes=self.accelerator.num_processes,
                parallel_mode=str(getattr(self.args.parallel_mode, "value", self.args.parallel_mode)),
                wrapper=type(self.model_wrapped).__name__,
            )
            return super().training_step(*args, **kwargs)

    return Watched


def measure(side: Side, scenario: Scenario, folder: Path) -> tuple[Trace, dict[str, Any]]:
    """Run one scenario on one library: its trace, and the facts of its world with the checkpoints it committed."""
    task = scenario.case.task
    facts: dict[str, Any] = {}
    COMMITS.clear()
    case = replace(scenario.case, task=Task(task.model, task.inputs, lambda side: watched(task, side, facts)))
    trace = run(side, case, folder)
    return trace, {**facts, "commits": dict(COMMITS)}


def main(out: Path) -> None:
    """Save `<scenario>-<side>-rank<r>.pt`: the trace and what the Trainer said about its world."""
    rank = os.environ["RANK"]
    sys.addaudithook(_note_commit)
    for scenario in SCENARIOS:
        sides = [("subject", side_of(scenario)), *([("reference", REFERENCE)] if scenario.against_reference else [])]
        for role, side in sides:
            name = scenario.case.name
            trace, facts = measure(side, scenario, out / f"{name}-{role}")
            torch.save(trace, out / f"{name}-{role}-rank{rank}.pt")
            (out / f"{name}-{role}-rank{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
