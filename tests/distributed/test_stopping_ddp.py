"""Two processes stop together, survive a failed save together, and agree on what they resume from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mainspring import checkpoint
from mainspring.errors import EXIT_RESUMABLE
from tests.distributed.launch import PROCESSES, one_process_per_machine, statuses
from tests.distributed.worker_stopping import STOPS
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own checkpoints"),
]

WORKER = "tests.distributed.worker_stopping"
SAVED = [f"checkpoint-{step}" for step in (2, 4, 6, 8, 9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one launch left behind; it serves all tests."""
    out = tmp_path_factory.mktemp("stopping")
    one_process_per_machine(WORKER, str(out), timeout=240)
    return out


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(PROCESSES)]


def assert_same_run(run: dict[str, Any], whole: dict[str, Any]) -> None:
    """To the bit, failed saves aside."""
    assert run["error"] == ""
    assert run["weights"] == whole["weights"]
    counted = [{name: value for name, value in log.items() if name != "failed_saves"} for log in run["history"]]
    assert counted == whole["history"]


@pytest.mark.parametrize("name", STOPS)
def test_what_one_process_is_asked_all_do(name: str, ranks: list[dict[str, Any]]) -> None:
    _, _, asked, step = STOPS[name]
    for rank, results in enumerate(ranks):
        stopped = results[name]["stopped"]
        assert (stopped["error"], stopped["step"]) == ("Preempted", step)
        who = "SIGTERM" if rank == asked else "another process was asked"
        assert stopped["message"].startswith(f"{who}: stopped at step {step} of 9; ")
        assert stopped["checkpoints"] == [f"checkpoint-{step}"]
        assert_same_run(results[name]["continued"], results["whole"])


def test_the_first_clock_that_runs_out_counts(ranks: list[dict[str, Any]]) -> None:
    stops = [results["out of time"]["stopped"] for results in ranks]
    assert [(stop["error"], stop["step"]) for stop in stops] == [("Preempted", 2)] * PROCESSES
    assert stops[1]["message"].startswith("max_time=0.001 s: ")
    for results in ranks:
        assert_same_run(results["out of time"]["continued"], results["whole"])


@pytest.mark.parametrize("name", ["random states", "model", "commit", "commit in the background"])
def test_a_save_that_fails_in_one_process_fails_in_all(name: str, ranks: list[dict[str, Any]], folder: Path) -> None:
    """There is no such checkpoint, everybody counts it and goes on, and the next one is whole."""
    for results in ranks:
        run = results[name]["run"]
        assert_same_run(run, results["whole"])
        assert run["failures"] == 1
        assert run["checkpoints"] == SAVED[1:]
        assert results[name]["told"] == [[step, True] for step in (4, 6, 8, 9)]
    for saved in SAVED[1:]:
        assert checkpoint.verify(folder / name / saved) == []
    assert not list((folder / name).glob(".*")), "nothing of the stage is left"


def test_a_save_that_fails_ends_all_where_that_is_asked_for(ranks: list[dict[str, Any]]) -> None:
    runs = [results["raised"]["run"] for results in ranks]
    assert [(run["error"], run["step"], run["checkpoints"]) for run in runs] == [("OSError", 2, [])] * PROCESSES
    assert all("No space left" in run["message"] for run in runs)
    assert runs[0]["message"].endswith("(process 1)")


def test_the_background_writes_the_same_checkpoints(ranks: list[dict[str, Any]], folder: Path) -> None:
    for results in ranks:
        assert_same_run(results["background"]["run"], results["whole"])
        assert_same_run(results["background"]["resumed"], results["whole"])
        assert results["background"]["told"] == [[step, True] for step in (2, 4, 6, 8, 9)]
    for saved in SAVED:
        theirs, ours = (checkpoint.read_manifest(folder / name / saved) for name in ("whole", "background"))
        assert theirs is not None
        assert ours is not None
        own = {"trainer_state.json", "training_args.json", "progress.json"}  # times, and the option itself
        contents = [{k: v for k, v in of.files.items() if k not in own} for of in (ours, theirs)]
        assert contents[0] == contents[1]
        assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors"} <= set(ours.files)


def test_all_pass_over_the_same_damaged_checkpoint(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results["damaged"]["start"] == 8
        assert_same_run(results["damaged"]["run"], results["whole"])
        assert results["damaged"]["run"]["checkpoints"] == [*SAVED, "checkpoint-9.damaged"]


def test_all_are_refused_where_another_run_works(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results["locked"]["refused"]["error"] == "RuntimeError"
        assert "is in use by" in results["locked"]["refused"]["message"]
        assert results["locked"]["run"]["step"] == 1


def test_a_stopped_run_ends_every_process_with_the_resumable_status(tmp_path: Path) -> None:
    assert statuses(WORKER, "stop", str(tmp_path), timeout=120) == [EXIT_RESUMABLE] * PROCESSES
    assert checkpoint.verify(tmp_path / "checkpoint-4") == []


def test_an_error_in_one_process_waits_for_nobody(tmp_path: Path) -> None:
    """It ends that process, and with it the others; what the background was writing is whole."""
    assert 0 not in statuses(WORKER, "fail", str(tmp_path), timeout=120)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert checkpoint.verify(tmp_path / "checkpoint-3") == []
