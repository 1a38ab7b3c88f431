"""What is taken of the samples of a batch: their tokens alone, and labels that no other sample predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mainspring.data.collators import DataCollatorWithPadding, default_data_collator
from mainspring.data.packing import column_collator
from mainspring.data.packing.columns import Columns, concatenated
from tests.helpers.data import collate_text

SAMPLES = [{"input_ids": [5, 6, 7], "labels": [5, -100, 7]}, {"input_ids": [8], "labels": [8]}, {"input_ids": [9, 4]}]


def values(columns: Columns) -> dict[str, list[int]]:
    return {name: column.tolist() for name, column in columns.values.items()}


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_samples_follow_each_other_and_their_first_labels_do_not_count(kind: Any) -> None:
    samples = [{name: kind(value) for name, value in sample.items()} for sample in SAMPLES[:2]]
    columns = concatenated(samples)
    assert values(columns) == {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, -100]}
    assert columns.lengths == [3, 1]
    assert [list(sample["labels"]) for sample in samples] == [[5, -100, 7], [8]]  # nothing of theirs is changed


def test_labels_are_the_tokens_where_there_are_none() -> None:
    columns = concatenated([{"input_ids": [5, 6]}, {"input_ids": [7, 8, 9]}])
    assert values(columns)["labels"] == [-100, 6, -100, 8, 9]


def test_a_sample_without_tokens_takes_no_place() -> None:
    columns = concatenated([{"input_ids": []}, {"input_ids": [7, 8]}, {"input_ids": []}])
    assert values(columns) == {"input_ids": [7, 8], "labels": [-100, 8]}
    assert columns.lengths == [0, 2, 0]


def test_padding_of_the_samples_themselves_is_taken_out() -> None:
    """On either side."""
    columns = concatenated(
        [{"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1]}, {"input_ids": [7, 8, 0], "attention_mask": [1, 1, 0]}]
    )
    assert values(columns) == {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}
    assert columns.lengths == [2, 2]


def test_a_collator_that_labels_is_asked_and_its_padding_taken_out() -> None:
    def without_prompts(samples: list[Any]) -> dict[str, torch.Tensor]:
        batch = collate_text([{"input_ids": torch.tensor(sample["input_ids"])} for sample in samples])
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, :2] = -100
        return {**batch, "labels": labels}

    columns = column_collator(without_prompts)(SAMPLES)
    assert values(columns) == {"input_ids": [5, 6, 7, 8, 9, 4], "labels": [-100, -100, 7, -100, -100, -100]}
    assert columns.lengths == [3, 1, 2]


class DataCollatorWithFlattening:
    """Named as the collator whose work packing does."""

    def __call__(self, samples: list[Any]) -> Any:
        raise AssertionError("not needed")


class Pads:
    """A tokenizer that is not needed."""

    def pad(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("not needed")


@pytest.mark.parametrize(
    "collator", [default_data_collator, DataCollatorWithPadding(Pads()), DataCollatorWithFlattening()]
)
def test_collators_that_only_stack_pad_or_flatten_are_not_asked(collator: Any) -> None:
    assert column_collator(collator) is concatenated


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"x": [1]}], "needs samples that are mappings with 'input_ids', not one with x"),
        ([3], "not int"),
        ([{"input_ids": [1, 2], "label": 3}], "'label' does not have one value per token"),
        ([{"input_ids": [1, 2], "scores": [0.5]}], "'scores' does not have one value per token"),
        ([{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1]}], "not all samples have 'labels'"),
        ([{"input_ids": [1, 2], "position_ids": [0, 1]}], "bring 'position_ids', which pack_sequences numbers itself"),
    ],
)
def test_samples_that_cannot_be_packed_are_refused(samples: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        concatenated(samples)


def test_a_collator_that_does_not_tell_padding_is_refused() -> None:
    def stacked(samples: list[Any]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.zeros(len(samples), 4, dtype=torch.long)}

    with pytest.raises(ValueError, match="data_collator returns no 'input_ids' and 'attention_mask'"):
        column_collator(stacked)(SAMPLES)


def test_a_collator_with_a_label_per_sample_is_refused() -> None:
    def classes(samples: list[Any]) -> dict[str, torch.Tensor]:
        batch = collate_text([{"input_ids": torch.tensor(sample["input_ids"])} for sample in samples])
        return {**batch, "labels": torch.zeros(len(samples), dtype=torch.long)}

    with pytest.raises(ValueError, match="'labels' does not have one value per token"):
        column_collator(classes)(SAMPLES)
