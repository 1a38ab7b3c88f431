"""Evaluation over two processes counts every sample once, whoever made the loader; what is not shared is left whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.distributed import worker_evaluation
from tests.distributed.launch import PROCESSES, forked
from tests.distributed.worker_evaluation import CASES, ROWS
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own loaders"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The metrics of each rank."""
    out = tmp_path_factory.mktemp("evaluation")
    forked("tests.distributed.worker_evaluation", str(out), timeout=180)
    return [json.loads((out / f"evaluation-rank{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The metrics of one process."""
    out = tmp_path_factory.mktemp("alone")
    worker_evaluation.main(out)
    found: dict[str, Any] = json.loads((out / "evaluation-rank0.json").read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_loss_and_metrics_are_those_of_one_process(
    case: str, shared: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    expected = alone[case]
    for found in (metrics[case] for metrics in shared):
        assert found["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
        assert found["eval_error"] == pytest.approx(expected["eval_error"], abs=1e-5)
        assert found["eval_different"] == expected["eval_different"]


@pytest.mark.parametrize(
    ("case", "rows"),
    [("map", ROWS), ("prepared", ROWS), ("stream", ROWS), ("shards", ROWS), ("fewer than processes", 1)],
)
def test_shared_data_is_counted_once(case: str, rows: int, shared: list[dict[str, Any]]) -> None:
    assert [metrics[case]["eval_rows"] for metrics in shared] == [rows] * PROCESSES


def test_a_loader_that_shares_nothing_is_counted_by_every_process(shared: list[dict[str, Any]]) -> None:
    """As the script that made it asked for: each row equally often, so that means come out right."""
    assert [metrics["plain"]["eval_rows"] for metrics in shared] == [PROCESSES * ROWS] * PROCESSES


def test_a_model_prepared_by_the_users_code_is_wrapped_as_the_options_say(shared: list[dict[str, Any]]) -> None:
    assert shared[0]["wrapper"] == {"find_unused": True, "bucket": 3 * 2**20}
