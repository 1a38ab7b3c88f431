"""Averages of weights over processes: the same with copies of the model and with pieces of it, exact on a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launch import PROCESSES, forked
from tests.distributed.worker_averages import ENGINES
from tests.helpers.runs import same

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp": "FSDPGPT2LMHeadModel", "offloaded": "FSDPGPT2LMHeadModel"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one launch."""
    out = tmp_path_factory.mktemp("averages")
    forked("tests.distributed.worker_averages", str(out))
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_run_is_distributed_and_processes_agree(engine: str, found: list[dict[str, Any]]) -> None:
    first, second = (of[engine] for of in found)
    assert first["world_size"] == second["world_size"] == PROCESSES
    assert first["wrapper"] == second["wrapper"] == WRAPPERS[engine]
    assert first["averages"]
    assert same(first["averages"], second["averages"])
    assert first["eval_loss"] == second["eval_loss"]


@pytest.mark.parametrize("engine", ["fsdp", "offloaded"])
def test_averages_of_pieces_are_those_of_copies(engine: str, found: list[dict[str, Any]]) -> None:
    copies, pieces = found[0]["ddp"], found[0][engine]
    assert copies["averages"].keys() == pieces["averages"].keys()
    for name, average in copies["averages"].items():
        # Adam divides by roots of sums that are rounded otherwise.
        torch.testing.assert_close(pieces["averages"][name], average, rtol=1e-3, atol=1e-4)
    assert pieces["eval_loss"] == pytest.approx(copies["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluations_use_the_average_and_the_weights_come_back(engine: str, found: list[dict[str, Any]]) -> None:
    of = found[0][engine]
    assert of["after"] == of["eval_loss"][-1]
    assert any(not torch.equal(of["weights"][name], average) for name, average in of["averages"].items())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_has_the_same_average(engine: str, found: list[dict[str, Any]], folder: Path) -> None:
    whole, again = found[0][engine], found[0][f"{engine}-again"]
    assert same(whole["averages"], again["averages"])
    assert same(whole["weights"], again["weights"])
    assert whole["eval_loss"] == again["eval_loss"]
    assert same(load_file(folder / engine / "checkpoint-4" / "ema.safetensors"), whole["averages"])


def test_a_learning_rate_is_looked_for_together_and_nothing_stays(found: list[dict[str, Any]]) -> None:
    first, second = (of["rates"] for of in found)
    assert first == second
    assert len(first.rates) == 12
    for of in found:
        assert same(of["looked"]["weights"], of["ddp"]["weights"]) or not of["looked"]["weights"]
        assert of["looked"]["loss"] == of["ddp"]["loss"]
        assert of["looked"]["eval_loss"] == of["ddp"]["eval_loss"]


def test_what_cannot_be_says_why(found: list[dict[str, Any]]) -> None:
    for of in found:
        assert "first version of FSDP" in of["first"]
        assert "divided among processes" in of["sharded"]
        assert "ask in one process" in of["measured"]
