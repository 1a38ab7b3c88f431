"""Two processes over gloo: the numbers of one process with the doubled batch, exact evaluation, one save, exact resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.launch import PROCESSES, torchrun
from tests.distributed.scenarios import SCENARIOS, Scenario
from tests.distributed.worker_ddp import side_of
from tests.helpers import data
from tests.helpers.sides import SUBJECT
from tests.parity.harness import Case, Trace, differences, run

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.parity]

TOLERANCE = 2e-5
"""Sums over two halves are rounded otherwise than sums over the whole: a few units in the last place per update."""

HOW_PADDED = ("total_flos", "padding_fraction")
"""What follows from how samples fall into batches."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one launch, shared by all tests."""
    out = tmp_path_factory.mktemp("ddp")
    torchrun("tests.distributed.worker_ddp", str(out))
    return out


@pytest.fixture(scope="module")
def trace(folder: Path) -> Callable[..., Trace]:
    """`trace(name, role="subject", rank=0)`."""

    def load(name: str, role: str = "subject", rank: int = 0) -> Trace:
        result: Trace = torch.load(folder / f"{name}-{role}-rank{rank}.pt", weights_only=False)
        return result

    return load


def _facts(folder: Path, name: str, rank: int) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / f"{name}-subject-rank{rank}.json").read_text())
    return facts


def _ids(scenario: Scenario) -> str:
    return scenario.case.name


def _alone(scenario: Scenario) -> Any:
    beyond = scenario.default_numbers and SUBJECT.is_reference
    marks = [pytest.mark.skip(reason="about Mainspring's own defaults")] if beyond else []
    return pytest.param(scenario, id=scenario.case.name, marks=marks)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=_ids)
def test_the_run_is_distributed(scenario: Scenario, folder: Path) -> None:
    """Two processes that know of each other behind the wrapper that joins them: no silent fall-back to two single runs."""
    for rank in range(PROCESSES):
        facts = _facts(folder, scenario.case.name, rank)
        assert facts["world_size"] == facts["num_processes"] == PROCESSES
        assert facts["rank"] == rank
        assert facts["wrapper"] == "DistributedDataParallel"
        assert facts["parallel_mode"] == "distributed"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=_ids)
def test_processes_agree(scenario: Scenario, trace: Callable[..., Trace]) -> None:
    """The same weights and the same logs everywhere."""
    first, second = (trace(scenario.case.name, rank=rank) for rank in range(PROCESSES))
    assert differences(_shared(first), _shared(second)) == []


def _shared(trace: Trace) -> Trace:
    """What does not belong to one process: not its random stream, nor whether it is the first."""
    own = ("is_local_process_zero", "is_world_process_zero")
    state = {key: value for key, value in trace.state.items() if key not in (*own, "stateful_callbacks")}
    return Trace(trace.logs, trace.output, state, trace.weights, trace.checkpoints, torch.zeros(0))


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.against_reference], ids=_ids)
def test_numbers_equal_the_references(scenario: Scenario, trace: Callable[..., Trace]) -> None:
    """The reference launched the same way deals the same samples and makes the same bits, on each process."""
    for rank in range(PROCESSES):
        expected, actual = (trace(scenario.case.name, role, rank) for role in ("reference", "subject"))
        assert differences(expected, actual) == []


@pytest.mark.parametrize("scenario", [_alone(s) for s in SCENARIOS if s.alone is not None])
def test_numbers_equal_one_process_with_the_doubled_batch(
    scenario: Scenario, trace: Callable[..., Trace], tmp_path: Path
) -> None:
    """Logged losses, norms and metrics, predictions and final weights, up to rounding."""
    case = scenario.case
    alone = Case(case.name, case.task, {**case.options, **(scenario.alone or {})}, drive=case.drive, why=case.why)
    expected, actual = run(side_of(scenario), alone, tmp_path), trace(case.name)
    assert differences(_numbers(expected), _numbers(actual), TOLERANCE) == []


def _numbers(trace: Trace) -> Trace:
    logs = [{k: v for k, v in log.items() if k not in HOW_PADDED} for log in trace.logs]
    return Trace(logs, trace.output, {}, trace.weights, trace.checkpoints, torch.zeros(0))


def test_every_sample_is_predicted_once_and_in_order(trace: Callable[..., Trace]) -> None:
    """Eleven samples over two processes in batches of four: eleven predictions beside their own labels."""
    predictions, labels, _ = trace("predict").output
    assert predictions.shape == (11,)
    np.testing.assert_array_equal(labels, np.array([row["labels"] for row in data.points(11, 3)], np.float32))


def test_checkpoints_are_whole(folder: Path) -> None:
    """One model and each process's own random state in every folder; nothing is left of the staging."""
    run_folder = folder / "saved-subject"
    assert {path.name for path in run_folder.iterdir()} == {f"checkpoint-{step}" for step in range(1, 11)}
    for checkpoint in run_folder.iterdir():
        names = {path.name for path in checkpoint.iterdir()}
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= names
        assert {name for name in names if name.startswith("rng_state")} == {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.skipif(SUBJECT.is_reference, reason="the reference writes into the final folder")
def test_each_checkpoint_is_committed_once(folder: Path) -> None:
    """The first process gives each folder its name, exactly once; the other never does."""
    first, second = (_facts(folder, "saved", rank)["commits"] for rank in range(PROCESSES))
    assert first == {f"checkpoint-{step}": 1 for step in range(1, 11)}
    assert second == {}


def test_a_resumed_run_ends_as_the_uninterrupted_one(trace: Callable[..., Trace]) -> None:
    """Killed in the fourth update and started again: the same bits on every process, dropout included."""
    for rank in range(PROCESSES):
        whole, resumed = trace("saved", rank=rank), trace("resumed", rank=rank)
        assert differences(_without_output(whole), _without_output(resumed)) == []


def _without_output(trace: Trace) -> Trace:
    """The training loss reported by the reference covers the resumed part only, and so does its last log."""
    logs = [log for log in trace.logs if "train_loss" not in log]
    state = {key: value for key, value in trace.state.items() if key != "stateful_callbacks"}
    return Trace(logs, None, state, trace.weights, trace.checkpoints, trace.random_state)
