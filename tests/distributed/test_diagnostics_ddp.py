"""Looking into a model in two processes: each sees its own, none waits for another, and numbers stay what they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.distributed.launch import PROCESSES, forked

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process wrote."""
    out = tmp_path_factory.mktemp("diagnostics")
    forked("tests.distributed.worker_diagnostics", str(out))
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(PROCESSES)]


def test_a_watched_run_has_the_numbers_of_another(results: list[dict[str, Any]]) -> None:
    for result in results:
        found = result["watched"]
        assert (found["world_size"], found["wrapper"]) == (PROCESSES, "DistributedDataParallel")
        assert found["losses"][0] == found["losses"][1]
        assert found["same"]
        assert found["hooks"] == 0


def test_one_process_explains_while_the_others_do_something_else(results: list[dict[str, Any]]) -> None:
    first, second = (result["explained"] for result in results)
    assert first["wrapper"] == second["wrapper"] == "DistributedDataParallel"
    assert first["found"] is None
    lines = second["found"].splitlines()
    assert "in the backward pass: nan in gradient of input[0]" in lines[0]
    assert lines[1:3] == ["  module: stack.1 (Root)", "  sample: row 2 of micro-batch 1"]
    assert first["kept"]
    assert second["kept"]
    assert first["sums"] == second["sums"]  # of the backward pass after it, which they made together


def test_what_several_processes_cannot_do_is_refused(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert "has only pieces of weights and gradients" in result["refused"]["fsdp"]
        assert "started as one process" in result["refused"]["invariance"]


def test_a_model_in_pieces_is_not_run_by_one_process(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["pieces"]["wrapper"].startswith("FSDP")
        assert "lies in pieces on several processes" in result["pieces"]["found"]
