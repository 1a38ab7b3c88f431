"""SIGKILL at any instant: the same command continues, and the finished run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.faults.killing import Instant, finish, kill_at
from tests.faults.runs import SCENARIOS, Scenario

from mainspring import checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.slow]

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
ALONE, WORKERS, EPOCHS, BACKGROUND, LARGE = BY_NAME.values()


def event(name: str, count: int = 1) -> Instant:
    phases = {"on_prediction_step": "evaluation", "on_evaluate": "evaluation", "on_save": "after a save"}
    edges = {"on_epoch_begin": "epoch edge", "on_epoch_end": "epoch edge", "on_train_end": "end of the run"}
    return Instant({**phases, **edges}.get(name, "update"), "event", name, count)


def writing(file: str, count: int = 1) -> Instant:
    return Instant("file write", "write", file, count)


def growing(file: str, size: int) -> Instant:
    return Instant("file write", "size", file, size)


def renaming(part: str, count: int = 1) -> Instant:
    return Instant("rename", "audit", f"os.rename:{part}", count)


def opening(part: str, count: int = 1) -> Instant:
    return Instant("manifest", "audit", f"open:{part}", count)


def rotating(call: str, count: int = 1) -> Instant:
    return Instant("rotation", "audit", call, count)


CHAINS: list[tuple[Scenario, Sequence[Instant]]] = [
    (ALONE, [event("on_step_begin", 2), event("on_substep_end", 5), event("on_step_end", 7)]),
    (ALONE, [event("on_prediction_step", 1), event("on_prediction_step", 4), event("on_evaluate", 2)]),
    (ALONE, [writing("optimizer.pt"), writing("scheduler.pt", 2), writing("rng_state.pth", 2)]),
    (ALONE, [writing("trainer_state.json"), writing("progress.json", 2), writing("training_args.json", 2)]),
    (ALONE, [opening("manifest"), writing("manifest.json", 2), opening("manifest", 6)]),
    (ALONE, [renaming("partial"), renaming("partial", 2), renaming("partial", 3)]),
    (ALONE, [event("on_save", 1), event("on_save", 2), event("on_train_end")]),
    (ALONE, [rotating("os.rename:deleted"), rotating("shutil.rmtree:deleted"), rotating("os.remove:optimizer.pt")]),
    (ALONE, [event("on_log", 2), event("on_pre_optimizer_step", 4), event("on_optimizer_step", 4)]),
    (WORKERS, [event("on_step_begin", 3), event("on_evaluate", 2), renaming("partial", 2)]),
    (WORKERS, [event("on_epoch_end", 1), event("on_epoch_begin", 1), writing("optimizer.pt", 2)]),
    (WORKERS, [event("on_substep_end", 4), event("on_save", 2), rotating("shutil.rmtree:deleted")]),
    (EPOCHS, [event("on_epoch_end", 1), event("on_epoch_begin", 2), event("on_epoch_end", 1)]),
    (EPOCHS, [event("on_prediction_step", 2), renaming("partial", 2), event("on_train_end")]),
    (BACKGROUND, [event("on_step_end", 4), writing("optimizer.pt", 2), renaming("partial", 2)]),
    (BACKGROUND, [event("on_save", 2), opening("manifest", 2), event("on_evaluate", 1)]),
    (LARGE, [growing("model.safetensors", 1), growing("optimizer.pt", 10_000_000), renaming("partial")]),
    (LARGE, [growing("model.safetensors", 20_000_000), growing("optimizer.pt", 1), event("on_step_end", 5)]),
]

hits: Counter[str] = Counter()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of each scenario's uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    outcomes = {}
    for index, scenario in enumerate(SCENARIOS):
        finish(scenario, folder / str(index))
        outcomes[scenario.name] = json.loads((folder / f"{index}.json").read_text())
    return outcomes


@pytest.mark.parametrize(("scenario", "instants"), CHAINS, ids=lambda value: getattr(value, "name", ""))
def test_a_killed_run_is_the_same_run(
    scenario: Scenario, instants: Sequence[Instant], whole: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    killed = [instant for instant in instants if kill_at(instant, scenario, folder)]
    hits.update(instant.phase for instant in killed)
    assert len(killed) == len(instants), f"the run did not come by {set(instants) - set(killed)}"
    finish(scenario, folder)
    assert json.loads(folder.with_suffix(".json").read_text()) == whole[scenario.name]
    left = sorted(path.name for path in folder.iterdir())
    assert all(name.startswith("checkpoint-") for name in left), "nothing of the dead is left"
    assert not any(checkpoint.verify(folder / name) for name in left)


def test_every_phase_was_hit() -> None:
    """The table of hits; it holds where this file runs as a whole, in one process."""
    if sum(hits.values()) < sum(len(instants) for _, instants in CHAINS):
        pytest.skip("only some of the runs were made in this process")
    print("\n".join(f"{phase:>16}  {count}" for phase, count in sorted(hits.items())))
    assert sum(hits.values()) >= 40
    assert all(hits[phase] >= 3 for phase in ("update", "evaluation", "file write", "manifest", "rename", "rotation"))
    assert all(hits[phase] >= 3 for phase in ("epoch edge", "after a save"))
