"""How a batch is cut along its rows, what says that memory ran out, and what a try leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from mainspring.data.packing.batches import PackedBatch
from mainspring.splitting import Beginning, Cutter, Fit, check_pieces, extent_of, is_out_of_memory

ERRORS = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "older torch": RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "the driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "windows": RuntimeError(
        "[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."
    ),
    "the host": MemoryError(),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_memory_are_known(name: str) -> None:
    assert is_out_of_memory(ERRORS[name])


def test_so_is_the_one_that_the_allocator_of_this_machine_raises() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes cannot be multiplied"), ValueError("CUDA out of memory."), RuntimeError("out", "of memory.")],
)
def test_others_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


CUTTER = Cutter(("input_ids", "labels"), shifts_labels=False)


def batch(rows: int, **more: Any) -> dict[str, Any]:
    return {"input_ids": torch.arange(rows * 3).view(rows, 3), "labels": torch.zeros(rows, 3), **more}


@pytest.mark.parametrize(
    ("rows", "count", "sizes"), [(8, 2, [4, 4]), (7, 4, [1, 2, 2, 2]), (3, 8, [1, 1, 1]), (1, 4, [1])]
)
def test_rows_are_dealt_evenly_and_kept_in_order(rows: int, count: int, sizes: list[int]) -> None:
    given = batch(rows)
    pieces = CUTTER.cut(given, count)
    assert [piece.rows for piece in pieces] == sizes
    for name, value in given.items():
        assert torch.equal(torch.cat([piece.inputs[name] for piece in pieces]), value)
    assert sum(piece.share for piece in pieces) == pytest.approx(1)
    assert all(piece.whole is given for piece in pieces)


def test_a_batch_that_is_not_cut_is_the_batch() -> None:
    given = batch(4)
    assert CUTTER.cut(given, 1)[0].inputs is given


def test_what_has_no_rows_is_for_all_and_what_has_them_is_cut_at_any_depth() -> None:
    given = batch(
        4,
        position_ids=torch.arange(3)[None],
        scale=torch.tensor(2.0),
        flag=True,
        name=None,
        weights=np.arange(4.0),
        texts=["a", "b", "c", "d"],
        boxes=[{"box": torch.zeros(index, 4)} for index in range(4)],
        nested={"pixels": (torch.arange(8).view(4, 2), torch.tensor([1]))},
    )
    first, second = (piece.inputs for piece in CUTTER.cut(given, 2))
    for name in ("position_ids", "scale", "flag", "name"):
        assert first[name] is second[name] is given[name]
    assert second["weights"].tolist() == [2, 3]
    assert second["texts"] == ["c", "d"]
    assert [box["box"].shape[0] for box in second["boxes"]] == [2, 3]
    assert second["nested"]["pixels"][0].tolist() == [[4, 5], [6, 7]]
    assert second["nested"]["pixels"][1].tolist() == [1]


def test_the_type_of_a_batch_is_kept() -> None:
    made = CUTTER.cut(transformers.BatchEncoding(batch(4)), 2)[1].inputs
    assert isinstance(made, transformers.BatchEncoding)
    assert made["input_ids"].shape == (2, 3)
    assert isinstance(CUTTER.cut(PackedBatch(batch(4)), 2)[0].inputs, PackedBatch)


def test_samples_in_one_row_are_not_cut() -> None:
    """As flash attention is given them: the places where samples begin are no rows."""
    given = {"cu_seq_lens_q": torch.tensor([0, 3, 5, 9]), "input_ids": torch.zeros(1, 9), "labels": torch.zeros(1, 9)}
    assert CUTTER.rows(given) == 1
    assert [piece.inputs for piece in CUTTER.cut(given, 4)] == [given]


AMBIGUOUS = {
    "has 6 in its first dimension": {"pixel_values": torch.zeros(6, 2)},
    "is a list of 4 tensors with 4 rows each": {"layers": [torch.zeros(4, 2) for _ in range(4)]},
}


@pytest.mark.parametrize("why", AMBIGUOUS)
def test_what_may_be_anybodys_is_an_error(why: str) -> None:
    (name,) = AMBIGUOUS[why]
    with pytest.raises(ValueError, match=f"(?s)along its 4 rows, for '{name}' {why}.*per_device_train_batch_size"):
        CUTTER.cut(batch(4, **AMBIGUOUS[why]), 2)


def test_other_batches_have_the_rows_of_their_first_tensor() -> None:
    first, second = CUTTER.cut((torch.arange(4), torch.arange(8).view(4, 2)), 2)
    assert first.inputs[0].tolist() == [0, 1]
    assert second.inputs[1].tolist() == [[4, 5], [6, 7]]
    assert CUTTER.rows("nothing with rows") == 1


def test_pieces_count_for_their_labels() -> None:
    labels = torch.tensor([[1, 1, 1], [1, -100, -100], [-100, -100, -100], [-100, -100, -100]])
    pieces = CUTTER.cut({**batch(4), "labels": labels}, 2)
    assert [piece.share for piece in pieces] == [1, 0]
    assert [piece.share for piece in Cutter(("labels",), shifts_labels=True).cut({"labels": labels[:2]}, 2)] == [1, 0]
    assert [piece.share for piece in CUTTER.cut({**batch(4), "labels": labels}, 4)] == [0.75, 0.25, 0, 0]
    assert pieces[1].of_batch(torch.tensor(float("nan"))).item() == 0


def test_a_mean_over_no_labels_is_left_out() -> None:
    labels = torch.tensor([[1, 1], [-100, -100]])
    assert len(CUTTER.cut({"labels": labels}, 2, means=True)) == 1
    nothing = CUTTER.cut({"labels": torch.full((2, 2), -100)}, 2, means=True)
    assert [piece.share for piece in nothing] == [0.5, 0.5]  # as the whole batch: not a number


def test_what_a_try_changes_is_put_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.grad = torch.ones(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.register_buffer("late", None)
    beginning = Beginning(model)
    model(torch.randn(4, 2)).sum().backward()
    model[1].running_mean = torch.ones(2)
    model.late = torch.ones(1)
    beginning.put_back()
    assert torch.equal(model[0].weight.grad, torch.ones(2, 2))
    assert model[0].bias.grad is None
    assert model.late is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_extents_are_tried_once() -> None:
    fit = Fit(CUTTER, 1)
    assert extent_of([batch(4), batch(2, image=torch.zeros(1, 9))]) == (12, 9)
    fit.note((12, 3))
    assert fit.has_tried((12, 3))
    assert fit.has_tried((6, 3))
    assert not fit.has_tried((6, 6))
    assert not fit.has_tried((13, 1))
    fit.note((6, 6))
    assert fit.has_tried((6, 6))
    assert fit.has_tried((12, 3))
    fit.note_update()  # now there are the optimizer's states
    assert not fit.has_tried((12, 3))
    fit.note((12, 3))
    fit.note_update()
    assert fit.has_tried((12, 3))


def test_every_reason_is_said() -> None:
    check_pieces(None, None)
    with pytest.raises(ValueError, match=r"(?s)auto_find_batch_size=True: one.*auto_find_batch_size=True: another"):
        check_pieces("one", None, "another")
