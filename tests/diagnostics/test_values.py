"""What is in a nest of values, and which of its elements is wrong."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mainspring.diagnostics.rows import joined, part_of, rows_of
from mainspring.diagnostics.values import first_bad, is_bad, largest, leaves, row_of

NAN, INF = float("nan"), float("inf")


def test_nests_are_gone_through_by_place() -> None:
    pair = namedtuple("pair", "left right")

    @dataclass
    class Box:
        inside: Any

    nest = {"a": [1, Box(pair(2, None))], "b": ()}
    assert list(leaves(nest, "it")) == [("it[a][0]", 1), ("it[a][1][inside][0]", 2), ("it[a][1][inside][1]", None)]


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.tensor([1.0, -INF, 2.0, NAN]), ("nan", 3)),  # masks come last
        (torch.tensor([[1.0, 2.0], [INF, NAN]]), ("inf", 2)),
        (torch.tensor([1.0, -INF]), ("-inf", 1)),
        (torch.tensor([1.0, INF], dtype=torch.bfloat16), ("inf", 1)),
        (torch.tensor([1.0, INF]).to(torch.float8_e5m2), ("inf", 1)),
        (torch.tensor([1 + 1j, complex(NAN, 0)]), ("nan", 1)),
        (torch.tensor([0.0, NAN, 1.0]).to_sparse(), ("nan", 0)),
    ],
    ids=["nan", "inf", "mask", "bfloat16", "float8", "complex", "sparse"],
)
def test_the_first_element_that_is_wrong(tensor: Tensor, found: tuple[str, int]) -> None:
    assert is_bad(tensor)
    assert first_bad(tensor) == found


@pytest.mark.parametrize("tensor", [torch.ones(2), torch.tensor([1, 2]), torch.tensor(True), torch.empty(0)])
def test_what_is_right(tensor: Tensor) -> None:
    assert not is_bad(tensor)


def test_magnitudes_are_of_finite_elements() -> None:
    assert largest(torch.tensor([-3.0, INF, NAN])) == 3.0
    assert largest(torch.tensor([INF])) is None
    assert largest(torch.empty(0)) is None


@pytest.mark.parametrize(
    ("shape", "index", "rows", "row"),
    [
        ((4, 3), 7, 4, 2),
        ((8, 3), 7, 4, 1),  # samples times positions
        ((5, 3), 7, 4, None),
        ((), 0, 4, None),
        ((4,), 3, None, None),
    ],
)
def test_rows_of_elements(shape: tuple[int, ...], index: int, rows: int | None, row: int | None) -> None:
    assert row_of(torch.zeros(shape), index, rows) == row


def test_batches_are_cut_and_joined() -> None:
    batch = {
        "x": torch.arange(6).view(3, 2),
        "mask": torch.ones(1, 2),
        "ids": ["a", "b", "c"],
        "scale": torch.tensor(2.0),
    }
    assert rows_of({"x": batch["x"], "y": torch.zeros(3), "scale": batch["scale"]}) == 3
    assert rows_of({"ids": ["a"]}) is None
    part = part_of(batch, 3, 1, 3)
    assert part["x"].tolist() == [[2, 3], [4, 5]]
    assert part["ids"] == ["b", "c"]
    assert part["mask"] is batch["mask"]
    assert part["scale"] is batch["scale"]
    with pytest.raises(ValueError, match="what of it belongs to which sample"):
        part_of({"x": torch.zeros(3), "offsets": torch.zeros(4)}, 3, 0, 1)
    again = joined([{"x": batch["x"][:1]}, {"x": batch["x"][1:]}])
    assert again is not None
    assert torch.equal(again["x"], batch["x"])
    assert joined([{"x": torch.zeros(1, 2)}, {"x": torch.zeros(1, 3)}]) is None
    assert joined([{"x": torch.zeros(1)}, {"y": torch.zeros(1)}]) is None
