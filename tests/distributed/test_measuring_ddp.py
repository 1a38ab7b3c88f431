"""What is measured of two processes: the slower one's waiting, the first one's memory, each one's profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import PROCESSES, torchrun
from tests.helpers import models

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measuring")
    torchrun("tests.distributed.worker_measuring", str(folder))
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> list[dict[str, Any]]:
    """What each process wrote."""
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.parametrize(
    ("case", "wrapper"),
    [
        ("timed", "DistributedDataParallel"),
        ("weighed", "DistributedDataParallel"),
        ("in_pieces", "FSDPGPT2LMHeadModel"),
    ],
)
def test_the_runs_are_distributed(case: str, wrapper: str, results: list[dict[str, Any]]) -> None:
    assert [(result[case]["world_size"], result[case]["wrapper"]) for result in results] == [(PROCESSES, wrapper)] * 2


def test_all_log_how_long_the_slowest_waited(results: list[dict[str, Any]]) -> None:
    assert [result["timed"]["data_wait_fraction"] for result in results] == [[0.5, 0.5]] * 2


def test_the_operations_of_all_are_a_share_of_what_all_can_do(results: list[dict[str, Any]]) -> None:
    for result, seconds in zip(results, (20, 40), strict=True):  # between two logs, by each one's clock
        counted = sum(result["timed"]["mfu"]) * seconds * PROCESSES * 1e6
        assert counted == pytest.approx(result["timed"]["operations"])


def test_the_first_process_alone_reports_memory(results: list[dict[str, Any]]) -> None:
    first, second = (result["weighed"]["keys"] for result in results)
    stages = {f"{stage}_mem_cpu_{what}_delta" for stage in ("init", "train", "eval") for what in ("alloc", "peaked")}
    assert set(first) == stages | {"before_init_mem_cpu"}
    assert second == []


def test_each_process_writes_a_profile_of_its_own(out: Path) -> None:
    names = sorted(path.name for path in (out / "weighed" / "profile").iterdir())
    assert names == [
        f"{kind}_rank{rank}_updates_1-3.{ending}"
        for kind, ending in (("operations", "txt"), ("trace", "json.gz"))
        for rank in range(PROCESSES)
    ]


def test_of_tensors_in_pieces_the_own_ones_count(results: list[dict[str, Any]]) -> None:
    whole = sum(parameter.numel() * 4 for parameter in models.tiny_gpt2().parameters())
    assert [result["weighed"]["weights"] for result in results] == [whole] * 2
    pieces = [result["in_pieces"] for result in results]
    assert sum(piece["weights"] for piece in pieces) == whole
    assert all(whole / 3 < piece["weights"] < 2 * whole / 3 for piece in pieces)
    assert all(2 * piece["weights"] <= piece["state"] < 2.1 * piece["weights"] for piece in pieces)
