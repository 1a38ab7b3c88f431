"""A loss that goes wrong on one rank of two: both decide alike, and nothing of the update stays on either."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.worker_numerics import FAR, LATE, NAN, ORDER, collect, plain, rows
from tests.helpers import ranks
from tests.helpers.sides import SUBJECT
from tests.numerics import runs

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own engines"),
]

UPDATE = 5
"""Updates before the one that goes wrong."""

LEFT_OUT = ("skip", "skip, plain", "skip, accumulation", "skip, gathers", "spike", "fsdp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("numerics")
    ended = ranks.run(found / "printed", collect, found, timeout=240)
    assert [one.status for one in ended] == [0, 0], ended[0].text[-3000:] + ended[1].text[-3000:]
    return found


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    """What both ranks saw."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def both(results: list[dict[str, Any]], case: str) -> dict[str, Any]:
    """What a run has come to, the same on both ranks but for its buffers."""
    first, second = (dict(rank[case]) for rank in results)
    for found in (first, second):
        found.pop("buffers", None)
        found["resumed"] = [{**one, "buffers": None} for one in found.get("resumed", [])]
    assert str(first) == str(second)  # as text, for NaN is not equal to itself
    sharded = case.startswith("fsdp")
    assert (first["kind"], first["world"]) == ("fsdp" if sharded else "ddp", 2)
    assert first["wrapper"] == ("FSDPRegressor" if sharded else "DistributedDataParallel")
    return first


def event(folder: Path, case: str) -> dict[str, Any]:
    (only,) = runs.events(folder / case)
    return only


@pytest.mark.parametrize("case", ["log", "fsdp, log"])
def test_a_loss_of_one_rank_counts_once_for_all(case: str, results: list[dict[str, Any]]) -> None:
    """From the sixth of eight updates on nothing is finite."""
    counts = both(results, case)["counts"]
    assert counts["nonfinite_steps"] == [3]
    assert counts["clipped_fraction"] == [5 / 8]


@pytest.mark.parametrize("case", LEFT_OUT)
def test_both_ranks_leave_the_update_out(case: str, results: list[dict[str, Any]]) -> None:
    found = both(results, case)
    assert (found["step"], found["planned"], found["error"]) == (7, 7, None)
    assert all(math.isfinite(value) for piece in found["weights"] for value in piece)
    assert found["counts"]["skipped_steps"] == [0] * 5 + [1, 0]
    assert found["counts"]["nonfinite_steps"] == ([0] * 7 if case == "spike" else [0] * 5 + [1, 0])


def test_the_buffers_of_both_ranks_are_finite(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert torch.tensor(rank["skip"]["buffers"][0]).isfinite().all()
        assert rank["skip"]["buffers"][2] == 7  # batches that the normalisation has seen


@pytest.mark.parametrize("case", ["skip, plain", "skip, accumulation", "fsdp"])
def test_the_weights_are_those_of_one_process(case: str, results: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = runs.trainer(tmp_path, rows({LATE: NAN}), model=plain(), num_train_epochs=1, on_nonfinite="skip")
    alone.train()
    assert alone.state.global_step == 7
    for mine, theirs in zip(alone.model.parameters(), both(results, case)["weights"], strict=True):
        assert torch.allclose(mine.flatten(), torch.tensor(theirs), atol=1e-6)


def test_one_line_names_the_samples_of_each_rank(folder: Path) -> None:
    found = event(folder, "skip")
    first = 4 * UPDATE
    assert found["indices"] == [[ORDER[first : first + 2]], [ORDER[first + 2 : first + 4]]]
    assert isinstance(found["losses"][0][0], float)
    assert (found["losses"][1], found["step"], found["batches"]) == (["nan"], 6, [5])
    assert found["reports"][0] == ""
    assert "nan in labels" in found["reports"][1]


def test_accumulated_micro_batches_are_named_one_by_one(folder: Path) -> None:
    place = 4 * UPDATE
    found = event(folder, "skip, accumulation")
    mine, theirs = [[ORDER[place]], [ORDER[place + 2]]], [[ORDER[place + 1]], [ORDER[place + 3]]]
    assert found["indices"] == [mine, theirs]
    assert found["batches"] == [10, 11]


def test_no_process_waits_for_what_another_does_not_run_again(folder: Path) -> None:
    """The loss talks to the other process: the batch is looked at, and not run again."""
    first, second = event(folder, "skip, gathers")["reports"]
    assert (first, "nan in labels" in second, "row 0 of micro-batch 0" in second) == ("", True, True)


@pytest.mark.parametrize("case", ["raise", "fsdp, raise"])
def test_both_ranks_raise_the_same_error(case: str, results: list[dict[str, Any]]) -> None:
    found = both(results, case)
    assert found["step"] == UPDATE
    assert found["error"].startswith("NonFiniteError: update 6 is not finite")
    assert f"samples of process 1: [{ORDER[22:24]}]" in found["error"]
    assert all(math.isfinite(value) for piece in found["weights"] for value in piece)


def test_a_spike_is_one_of_the_mean_over_the_ranks(folder: Path) -> None:
    found = event(folder, "spike")
    assert found["loss"] == pytest.approx(sum(losses[0] for losses in found["losses"]) / 2)
    assert found["loss"] > FAR
    assert found["losses"][0][0] < 100


def test_both_ranks_go_back(results: list[dict[str, Any]], folder: Path) -> None:
    found = both(results, "rollback")
    assert (found["step"], found["planned"]) == (4, 4)
    assert [(log["rollback_from"], log["rollback_to"]) for log in found["went back"]] == [(5, 2)]
    assert event(folder, "rollback")["back_to"] == 2


@pytest.mark.parametrize("case", ["skip, resumed", "rollback, resumed"])
def test_resumed_runs_are_the_uninterrupted_one(case: str, results: list[dict[str, Any]]) -> None:
    both(results, case)
    for rank, found in enumerate(results):
        whole = found[case]
        saved = ("buffers",) if rank == 0 else ()  # the first rank's are
        for resumed in whole["resumed"]:
            assert resumed["error"] is None
            for key in ("step", "planned", "weights", "counts", "losses", "went back", *saved):
                assert resumed[key] == whole[key], key


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("compressed", "what ddp_comm_hook='powersgd' has lost to rounding"),
        ("fsdp, rollback", "under the engine 'fsdp' weights lie in pieces, of which no copy is kept"),
        ("poisoned", "NaN or infinite values before training begins, in "),
    ],
)
def test_what_cannot_be_is_refused_by_both(case: str, why: str, results: list[dict[str, Any]]) -> None:
    assert all(why in rank[case]["error"] for rank in results)
