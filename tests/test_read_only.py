"""A folder that cannot be written to ends no run, loses no checkpoint, and can be gone on from."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mainspring import checkpoint
from tests.faults.worker_read_only import OPTIONS, outcome
from tests.helpers.runs import trainer

pytestmark = [pytest.mark.faults, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
NAMESPACE = ["unshare", "--mount", "--map-root-user"]


@functools.cache
def may_mount() -> bool:
    """Whether a process may have mounts of its own here."""
    command = [*NAMESPACE, "mount", "--bind", ROOT / "tests", ROOT / "tests"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Runs:
    """What the worker's runs came to, where they wrote, and what they said."""

    root: Path
    outcomes: dict[str, dict[str, Any]]
    told: str

    def failures_told(self, name: str) -> list[str]:
        """The checkpoints of a run that could not be saved, as it says."""
        return re.findall(rf"{name}/(checkpoint-\d+) COULD NOT BE SAVED", self.told)

    def failures_counted(self, name: str) -> list[int]:
        return [log["failed_saves"] for log in self.outcomes[name]["history"] if "failed_saves" in log]


@pytest.fixture(scope="module", params=["permissions", "mounted"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    if request.param == "mounted" and not may_mount():
        pytest.skip("no process may mount anything here")
    root = tmp_path_factory.mktemp("runs")
    before = NAMESPACE if request.param == "mounted" else []
    command = [*before, sys.executable, "-m", "tests.faults.worker_read_only", request.param, str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return Runs(root, json.loads(done.stdout.splitlines()[-1]), done.stderr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = trainer(tmp_path_factory.mktemp("whole"), **OPTIONS)
    run.train()
    return json.loads(json.dumps(outcome(run)))  # type: ignore[no-any-return]


def without_count(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in log.items() if key != "failed_saves"} for log in history]


@pytest.mark.parametrize(("name", "began"), [("middle", 0), ("elsewhere", 4), ("before", 2)])
def test_the_run_is_the_one_that_it_would_have_been(name: str, began: int, runs: Runs, whole: dict[str, Any]) -> None:
    came = runs.outcomes[name]
    assert came["began"] == began
    assert came["weights"] == whole["weights"]
    assert without_count(came["history"]) == whole["history"]


def test_every_failure_is_told_and_counted(runs: Runs) -> None:
    assert runs.failures_told("middle") == ["checkpoint-6", "checkpoint-8", "checkpoint-9"]
    assert runs.failures_counted("middle")[0] == 1
    assert runs.failures_told("before") == ["checkpoint-4", "checkpoint-6", "checkpoint-8", "checkpoint-9"]
    assert runs.failures_told("elsewhere") == []


def test_the_summary_counts_the_failures_after_the_last_log_of_an_update_too(runs: Runs) -> None:
    assert runs.outcomes["middle"]["history"][-1]["failed_saves"] == 3


def test_what_was_there_stays(runs: Runs) -> None:
    assert sorted(path.name for path in runs.root.glob("middle/checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not any(checkpoint.verify(path) for path in runs.root.glob("middle/checkpoint-*"))
    assert sorted(path.name for path in runs.root.glob("before/*")) == ["checkpoint-2", "checkpoint-4"]


def test_what_is_wrong_with_the_folder_is_told(runs: Runs) -> None:
    assert re.search(r"before could not be locked \(", runs.told)
    assert re.search(r"before/checkpoint-4 is not a valid checkpoint: .* It could not be moved aside", runs.told)
