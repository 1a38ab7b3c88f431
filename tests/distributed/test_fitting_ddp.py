"""One of two processes runs out of memory: all make the update in smaller pieces, and it stays the update that it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import PROCESSES, forked
from tests.distributed.worker_fitting import TOGETHER, alone
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own option"),
]

Find = Callable[..., Any]


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Find:
    """`find(case, rank=0)`: what a process found in a case. One launch for all tests."""
    out: Path = tmp_path_factory.mktemp("fitting")
    forked("tests.distributed.worker_fitting", str(out), timeout=300)

    def load(case: str, rank: int = 0) -> Any:
        return torch.load(out / f"{case}-rank{rank}.pt", weights_only=False)

    return load


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["steps"] == other["steps"]
    torch.testing.assert_close(torch.tensor(one["logs"]), torch.tensor(other["logs"]), rtol=1e-5, atol=1e-6)
    for name, value in one["weights"].items():
        torch.testing.assert_close(value, other["weights"][name], rtol=1e-5, atol=1e-6)


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["logs"][-len(other["logs"]) :] == other["logs"]
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name


@pytest.mark.parametrize("name", TOGETHER)
def test_the_run_is_distributed_and_both_make_as_many_pieces(name: str, find: Find) -> None:
    for rank in range(PROCESSES):
        result = find(name, rank)
        assert result["world_size"] == PROCESSES
        assert result["wrapper"] == "DistributedDataParallel"
        assert result["pieces"] > 1


@pytest.mark.parametrize("name", TOGETHER)
def test_an_update_in_pieces_is_the_update(name: str, find: Find) -> None:
    assert_same(find(name), find(f"{name} whole"))
    assert_equal(find(name, 0), find(name, 1))


@pytest.mark.parametrize("name", ["mean", "items", "backward", "routers"])
def test_it_is_the_update_of_one_process(name: str, find: Find, tmp_path: Path) -> None:
    assert_same(find(name), alone(name, tmp_path))


def test_only_larger_micro_batches_are_tried(find: Find) -> None:
    """And those of the second update once more, for then there are the optimizer's states."""
    assert find("steady")["steps"] == 4
    assert find("steady")["passes"] == [8] * 6
    assert find("longer and longer", 0)["passes"][:5] == [24, 24, 40, 20, 20]  # with 48 in the other, which holds 40


def test_trying_leaves_no_trace(find: Find) -> None:
    result = find("no trace", 1)
    assert len(result["tried"]["passes"]) > len(result["untried"]["passes"])
    assert_equal(result["tried"], result["untried"])


def test_sizes_are_tried_again_with_the_optimizers_states(find: Find) -> None:
    assert find("optimizer states", 0)["pieces"] == 4
    assert find("optimizer states", 1)["passes"][:2] == [8, 8]


def test_a_row_that_does_not_fit_ends_every_process(find: Find) -> None:
    assert (
        "the run is out of memory. Not even one row at a time fits (tried: 8, 4, 2, 1)" in find("hopeless", 1)["error"]
    )
    assert "another process is out of memory" in find("hopeless", 0)["error"]


def test_a_resumed_run_begins_with_the_pieces_that_were_found(find: Find) -> None:
    for rank in range(PROCESSES):
        result = find("resumed", rank)
        assert max(result["again"]["passes"]) == 2
        assert_equal(result["whole"], result["again"])


@pytest.mark.parametrize("number, why", enumerate(["sync_each_batch", "SyncBatchNorm", "ddp_static_graph", "fsdp"]))
def test_what_one_process_cannot_try_alone_is_refused(number: int, why: str, find: Find) -> None:
    for rank in range(PROCESSES):
        assert "auto_find_batch_size=True" in find("refused", rank)["texts"][number]
        assert why in find("refused", rank)["texts"][number]
