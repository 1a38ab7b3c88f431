"""Generation over two processes gives the texts of one: each sample once, in order, all of one width."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.distributed import worker_seq2seq
from tests.distributed.launch import PROCESSES, forked
from tests.distributed.worker_seq2seq import ROWS
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="the reference counts filling twice"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank was given."""
    out = tmp_path_factory.mktemp("seq2seq")
    forked("tests.distributed.worker_seq2seq", str(out), timeout=180)
    return [json.loads((out / f"seq2seq-rank{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process was given."""
    out = tmp_path_factory.mktemp("alone")
    worker_seq2seq.main(out)
    found: dict[str, Any] = json.loads((out / "seq2seq-rank0.json").read_text())
    return found


def without_filling(rows: list[list[int]]) -> list[list[int]]:
    return [[token for token in row if token > 0] for row in rows]


@pytest.mark.parametrize("case", ["bart", "decoder"])
def test_texts_labels_and_loss_are_those_of_one_process(
    case: str, shared: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for found in (given[case] for given in shared):
        assert found["texts"] == alone[case]["texts"]
        assert len(found["texts"]) == ROWS
        assert without_filling(found["labels"]) == without_filling(alone[case]["labels"])
        assert found["loss"] == pytest.approx(alone[case]["loss"], rel=1e-5)


def test_compat_fills_up_the_last_round_as_the_reference_does(shared: list[dict[str, Any]]) -> None:
    rows = shared[0]["as the reference"]["texts"]
    assert len(rows) == 12
    assert rows[ROWS:] == rows[:2]
