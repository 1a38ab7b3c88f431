"""Multiple choice, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from mainspring.data.collators import DataCollatorForMultipleChoice
from tests.data.collators.oracle import assert_collates_as, assert_same, of_kind, texts, word_tokenizer


def questions(label_key: str = "labels", choices: int = 3) -> list[dict[str, Any]]:
    rows = texts(4 * choices)
    return [
        {
            "input_ids": rows[begin : begin + choices],
            "attention_mask": [[1] * len(row) for row in rows[begin : begin + choices]],
            label_key: begin % choices,
        }
        for begin in range(0, len(rows), choices)
    ]


@pytest.mark.parametrize("label_key", ["label", "labels"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("options", [{}, {"pad_to_multiple_of": 8}, {"padding": "max_length", "max_length": 30}])
def test_equals_the_reference(label_key: str, side: str, options: dict[str, Any]) -> None:
    options = {**options, "tokenizer": word_tokenizer(side)}
    theirs, ours = transformers.DataCollatorForMultipleChoice(**options), DataCollatorForMultipleChoice(**options)
    for kind in ("dicts of lists", "user dicts"):
        assert_collates_as(theirs, ours, of_kind(kind, questions(label_key)), batches=1)


def test_arrays_hold_the_same() -> None:
    collate = DataCollatorForMultipleChoice(word_tokenizer())
    tensors, arrays = collate(questions()), collate(questions(), return_tensors="np")
    assert_same(arrays, {key: value.numpy() for key, value in tensors.items()})
    assert tensors["input_ids"].shape[:2] == (4, 3)


@pytest.mark.parametrize("label", [1, np.int32(1), torch.tensor(1)])
def test_labels_of_any_kind_and_name(label: Any) -> None:
    collate = DataCollatorForMultipleChoice(word_tokenizer())
    batch = collate([{"input_ids": [[5], [6, 7]], "label_ids": label}])
    assert batch["labels"].tolist() == [1]
    assert batch["labels"].dtype == torch.int64


def test_without_labels() -> None:
    batch = DataCollatorForMultipleChoice(word_tokenizer())([{"input_ids": [[5], [6, 7]]}])
    assert batch["input_ids"].tolist() == [[[5, 0], [6, 7]]]
    assert "labels" not in batch


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"labels": 1}], "sample 0 of the batch has no 'input_ids', only 'labels'"),
        ([{"input_ids": [[5], [6]]}, {"input_ids": [[5]]}], "'input_ids' of sample 1 .* has 1 choices, .* has 2"),
        ([{"input_ids": [[5], [6]], "n": 3}], "'n' of sample 0 of the batch has no choices"),
        ([{"input_ids": [[5]], "label": 0}, {"input_ids": [[5]]}], "sample 1 of the batch has no 'label'"),
    ],
)
def test_samples_that_do_not_fit_are_named(samples: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DataCollatorForMultipleChoice: {message}"):
        DataCollatorForMultipleChoice(word_tokenizer())(samples)
