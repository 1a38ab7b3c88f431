"""Samples laid end to end, against the reference."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies

from mainspring.data.collators import DataCollatorWithFlattening
from tests.data.collators.oracle import KINDS, assert_collates_as, assert_same, of_kind, texts

FLAGS = ("return_position_ids", "return_flash_attn_kwargs", "return_seq_idx")

pytestmark = pytest.mark.filterwarnings("ignore:Using `DataCollatorWithFlattening`")


def samples(labelled: bool = True) -> list[dict[str, Any]]:
    rows = texts()
    return [
        {"input_ids": row, "attention_mask": [1] * len(row), **({"labels": row[::-1]} if labelled else {})}
        for row in rows
    ]


@pytest.mark.parametrize("flags", list(product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("labelled", [True, False])
def test_equals_the_reference(flags: tuple[bool, ...], framework: str, labelled: bool) -> None:
    options = {**dict(zip(FLAGS, flags, strict=True)), "return_tensors": framework}
    theirs = transformers.DataCollatorWithFlattening(**options)
    assert_collates_as(theirs, DataCollatorWithFlattening(**options), samples(labelled), batches=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"separator_id": -7}, {"position_ids_start": 2}])
def test_every_kind_of_sample(kind: str, options: dict[str, Any]) -> None:
    theirs = transformers.DataCollatorWithFlattening(**options)
    assert_collates_as(theirs, DataCollatorWithFlattening(**options), of_kind(kind, samples()), batches=1)


def test_the_call_overrides_the_options() -> None:
    options = {"return_tensors": "np", "separator_id": -9}
    theirs = transformers.DataCollatorWithFlattening()(samples(), **options)
    assert_same(DataCollatorWithFlattening()(samples(), **options), theirs)


def test_positional_framework_as_in_the_reference() -> None:
    assert DataCollatorWithFlattening("np").return_tensors == "np"
    with pytest.raises(TypeError):
        DataCollatorWithFlattening("np", False)
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        DataCollatorWithFlattening("tf")(samples())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"labels": [1]}], "sample 0 of the batch has no 'input_ids', only 'labels'"),
        ([{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}], "sample 1 of the batch has no 'labels'"),
        ([{"input_ids": [1]}, {"input_ids": [1], "labels": [1]}], "sample 0 of the batch has no 'labels'"),
        ([{"input_ids": [1, 2], "labels": [1]}], "sample 0 of the batch has 1 labels for 2 tokens"),
    ],
)
def test_samples_that_do_not_fit_are_named(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DataCollatorWithFlattening: {message}"):
        DataCollatorWithFlattening()(rows)


@settings(deadline=None)
@given(lengths=strategies.lists(strategies.integers(0, 9), min_size=1, max_size=8).filter(any))
def test_each_sample_can_be_cut_out_again(lengths: list[int]) -> None:
    rows = [list(range(10 * number, 10 * number + length)) for number, length in enumerate(lengths)]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True, position_ids_start=1)
    batch = collate([{"input_ids": row} for row in rows])
    bounds = batch["cu_seq_lens_q"].tolist()
    for number, (begin, end) in enumerate(pairwise(bounds)):
        length = end - begin
        assert batch["input_ids"][0, begin:end].tolist() == rows[number]
        assert batch["labels"][0, begin:end].tolist() == ([-100, *rows[number][1:]] if length else [])
        assert batch["position_ids"][0, begin:end].tolist() == list(range(1, length + 1))
        assert batch["seq_idx"][0, begin:end].tolist() == [number] * length
    assert bounds[-1] == batch["input_ids"].shape[1] == sum(lengths)
    assert batch["max_length_q"] == batch["max_length_k"] == max(lengths)
    assert batch["cu_seq_lens_q"].data_ptr() != batch["cu_seq_lens_k"].data_ptr()


def test_integers_of_other_sizes() -> None:
    batch = DataCollatorWithFlattening()([{"input_ids": np.array([1, 2], np.int32)}, {"input_ids": torch.tensor([3])}])
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"].tolist() == [[1, 2, 3]]
