"""What an evaluation keeps: any structure, in memory up to the limit, on the device only for a while."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mainspring.evaluation import kept as room
from mainspring.evaluation.kept import Kept, Outputs, Rows, Shelf, Transfer


def filled(limit: int, batches: list[Any], concat: bool = True, expected: int | None = None) -> Any:
    """What is kept of these predictions."""
    with Shelf(limit) as shelf:
        kept = Kept(shelf, concat, expected)
        transfer = Transfer([kept], None)
        for batch in batches:
            transfer.add(Outputs(predictions=batch))
        transfer.to_host()
        return kept.arrays().predictions


def tree(rows: int, width: int) -> Any:
    """Outputs of several parts."""
    return {"logits": torch.ones(rows, width), "more": (torch.zeros(rows), torch.ones(rows, 2, dtype=torch.int32))}


@pytest.mark.parametrize("limit", [0, 60, 10**9])
def test_structures_are_kept(limit: int) -> None:
    found = filled(limit, [tree(2, 3), tree(1, 4)], expected=3)
    assert found["logits"].tolist() == [[1, 1, 1, -100], [1, 1, 1, -100], [1, 1, 1, 1]]
    assert found["more"][0].tolist() == [0, 0, 0]
    assert found["more"][1].dtype == np.int32
    assert isinstance(found["logits"], np.memmap) == (limit < 10**9)


@pytest.mark.parametrize("limit", [0, 60, 10**9])
def test_lists_of_batches_may_differ_in_structure(limit: int) -> None:
    first, second = filled(limit, [tree(2, 3), torch.ones(1, 4)], concat=False)
    assert first["logits"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert second.tolist() == [[1, 1, 1, 1]]


def test_structures_that_differ_cannot_be_joined() -> None:
    with pytest.raises(TypeError, match="structures differ"):
        filled(10**9, [tree(2, 3), (torch.ones(1, 4),)])


@pytest.mark.parametrize(
    ("limit", "in_files"), [(4 * 10 * 8 - 1, True), (4 * 10 * 8, False)], ids=["beyond the limit", "at the limit"]
)
def test_the_limit_counts_what_all_batches_will_take(limit: int, in_files: bool) -> None:
    with Shelf(limit) as shelf:
        column = shelf.column(expected_rows=10)
        column.append(np.ones((2, 4)))
        assert shelf.in_files == in_files


def test_what_was_in_memory_moves_to_the_file_too() -> None:
    batches = [torch.full((2, 3), float(index)) for index in range(20)]
    found = filled(100, batches)  # passed by the fifth batch
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, torch.cat(batches).numpy())


def test_objects_are_kept_row_by_row() -> None:
    batches = [(torch.ones(2), Rows(["a", "b"])), (torch.ones(1), Rows(["c"]))]
    assert filled(0, batches)[1] == ["a", "b", "c"]
    assert [batch[1] for batch in filled(0, batches, concat=False)] == [["a", "b"], ["c"]]


class Receiver:
    """Counts what arrives."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def add(self, outputs: Outputs) -> None:
        self.batches.append(outputs)


def test_batches_wait_as_many_as_were_asked_for() -> None:
    receiver = Receiver()
    transfer = Transfer([receiver], 3)
    arrived = []
    for index in range(7):
        transfer.add(Outputs(predictions=torch.tensor([index])))
        arrived.append(len(receiver.batches))
    transfer.to_host()
    assert arrived == [0, 0, 3, 3, 3, 6, 6]
    assert [int(batch.predictions[0]) for batch in receiver.batches] == [*range(7)]


def test_batches_wait_only_while_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WAITING_BYTES", 100)
    receiver = Receiver()
    transfer = Transfer([receiver], None)
    arrived = []
    for _ in range(4):
        transfer.add(Outputs(predictions=torch.ones(10), labels=torch.ones(3)))
        arrived.append(len(receiver.batches))
    assert arrived == [0, 2, 2, 4]


def test_a_view_does_not_keep_its_base_while_it_waits() -> None:
    transfer = Transfer([Receiver()], None)
    logits = torch.rand(4, 1000, 10)
    transfer.add(Outputs(predictions=logits[:, -1]))
    assert transfer._waiting[0].predictions.untyped_storage().nbytes() == 4 * 10 * 4


def test_half_precision_arrives_as_numbers_that_numpy_has() -> None:
    assert filled(10**9, [torch.ones(2, 2, dtype=torch.bfloat16)]).dtype == np.float32


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match="ignore_keys"):
        filled(10**9, [{"text": "words"}])


def test_files_are_closed_when_something_goes_wrong() -> None:
    columns = []

    def go_wrong() -> None:
        with Shelf(0) as shelf:
            columns.append(shelf.column(None))
            columns[0].append(np.ones(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go_wrong()
    assert columns[0].pieces.file.closed
