"""SIGKILL at any instant: the same command continues, and the finished run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.faults.instants import CHAINS, RANDOM, event, renaming
from tests.faults.killing import Instant, end, finish, kill_at, kill_near
from tests.faults.runs import ALONE, SAVED_AGAIN, STOPPED, TOUCHED, TOUCHED_LATE, Scenario, run_until_asked_to_stop

from mainspring import checkpoint
from mainspring.errors import EXIT_RESUMABLE

pytestmark = [pytest.mark.faults, pytest.mark.slow]

Whole = Callable[[Scenario], dict[str, Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The outcome of a scenario's uninterrupted run."""
    outcomes: dict[str, dict[str, Any]] = {}

    def of(scenario: Scenario) -> dict[str, Any]:
        if scenario.name not in outcomes:
            folder = tmp_path_factory.mktemp("whole") / "run"
            finish(scenario, folder)
            outcomes[scenario.name] = outcome_of(folder)
        return outcomes[scenario.name]

    return of


def outcome_of(folder: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(folder.with_suffix(".json").read_text())
    return outcome


def valid(folder: Path) -> list[str]:
    """The checkpoints that a run could go on from."""
    return sorted(path.name for path in folder.glob("checkpoint-*") if not checkpoint.verify(path))


def ends_as_if_nothing_had_happened(scenario: Scenario, folder: Path, whole: Whole) -> None:
    finish(scenario, folder)
    assert outcome_of(folder) == whole(scenario)
    left = sorted(path.name for path in folder.iterdir() if path.name != checkpoint.ENDED_NAME)
    assert left == valid(folder), "nothing of the dead is left"


@pytest.mark.parametrize(
    ("scenario", "instants"),
    CHAINS,
    ids=[f"{scenario.name}: {', '.join(map(str, instants))}" for scenario, instants in CHAINS],
)
def test_a_killed_run_is_the_same_run(
    scenario: Scenario, instants: Sequence[Instant], whole: Whole, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for instant in instants:
        if instant.may_be_missed:
            kill_near(instant, scenario, folder)
        else:
            assert kill_at(instant, scenario, folder), f"the run did not come by {instant}"
    ends_as_if_nothing_had_happened(scenario, folder, whole)


def test_every_phase_is_hit() -> None:
    """The table of hits: the test above fails where one of them is missed."""
    hits = Counter(instant.phase for _, instants in CHAINS for instant in instants)
    print("\n".join(f"{phase:>16}  {count}" for phase, count in sorted(hits.items())))
    assert sum(hits.values()) >= 40
    phases = ("update", "evaluation", "file write", "manifest", "rename", "rotation", "epoch edge", "after a save")
    assert all(hits[phase] >= 3 for phase in (*phases, "early stop"))
    assert hits[RANDOM] >= 8


def test_the_impatient_run_is_stopped_early(whole: Whole) -> None:
    """Else the kills about its stop would be kills of any run."""
    outcome = whole(STOPPED)
    assert (outcome["step"], outcome["planned"], outcome["patience"]) == (9, 12, [2])


def test_what_was_being_replaced_is_put_back(whole: Whole, tmp_path: Path) -> None:
    """Killed between the two renames, when the checkpoint has left its place and the new one is not there."""
    folder = tmp_path / "run"
    assert kill_at(renaming("partial", 3), SAVED_AGAIN, folder)
    assert valid(folder) == ["checkpoint-3"]
    (former,) = folder.glob(".checkpoint-6.*.replaced")
    assert not checkpoint.verify(former)
    assert kill_at(event("on_train_begin"), SAVED_AGAIN, folder)
    assert valid(folder) == ["checkpoint-3", "checkpoint-6"]
    assert not list(folder.glob(".checkpoint*"))
    ends_as_if_nothing_had_happened(SAVED_AGAIN, folder, whole)


@pytest.mark.parametrize("part", ["replaced", "partial"])
def test_what_is_saved_again_after_a_stop_inside_an_evaluation(part: str, whole: Whole, tmp_path: Path) -> None:
    """The request left a checkpoint before the evaluation; the one after it replaces that."""
    folder = tmp_path / "run"
    end(run_until_asked_to_stop, EXIT_RESUMABLE, ALONE, folder, "on_prediction_step", 2)
    assert valid(folder) == ["checkpoint-3"]
    assert kill_at(renaming(part), ALONE, folder)
    assert len(list(folder.glob(".checkpoint-3.*.partial"))) == 1
    ends_as_if_nothing_had_happened(ALONE, folder, whole)


@pytest.mark.parametrize("scenario", [TOUCHED, TOUCHED_LATE], ids=lambda scenario: scenario.name)
def test_a_death_while_a_callback_rewrites_the_newest_leaves_another(
    scenario: Scenario, whole: Whole, tmp_path: Path
) -> None:
    """The callback's rewriting and the manifest's are apart: meanwhile the newest checkpoint is not valid."""
    folder = tmp_path / "run"
    assert kill_at(event("on_save", 3), scenario, folder)
    assert "checkpoint-9" not in valid(folder)
    assert valid(folder), "with room for one checkpoint, the former goes when the new one is known to be valid"
    finish(scenario, folder)
    assert outcome_of(folder) == whole(scenario)
    assert valid(folder) == ["checkpoint-12"]
