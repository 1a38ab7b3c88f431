"""Token classification and sequence to sequence, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies

from mainspring.data.collators import DataCollatorForSeq2Seq, DataCollatorForTokenClassification
from tests.data.collators.oracle import KINDS, PAD, assert_collates_as, assert_same, of_kind, texts, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`max_length` is ignored")

CLASSES = [
    (DataCollatorForTokenClassification, transformers.DataCollatorForTokenClassification),
    (DataCollatorForSeq2Seq, transformers.DataCollatorForSeq2Seq),
]
both = pytest.mark.parametrize(("ours", "theirs"), CLASSES, ids=["tokens", "seq2seq"])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 30},
    {"padding": "max_length", "max_length": 30, "pad_to_multiple_of": 8},
    {"padding": "longest", "label_pad_token_id": -1},
    {"padding": transformers.utils.PaddingStrategy.MAX_LENGTH, "max_length": 26},
    {"max_length": 30},
]


def labelled(seed: int = 0) -> list[dict[str, Any]]:
    """Texts with a label per token."""
    return [{"input_ids": row, "labels": [token % 7 for token in row]} for row in texts(seed=seed)]


def translations() -> list[dict[str, Any]]:
    """Texts with labels of other lengths."""
    return [{"input_ids": row, "labels": other} for row, other in zip(texts(seed=1), texts(seed=2), strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=repr)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("framework", ["pt", "np"])
@both
def test_equals_the_reference(
    ours: Any, theirs: Any, framework: str, side: str, options: dict[str, Any], kind: str
) -> None:
    options = {**options, "tokenizer": word_tokenizer(side), "return_tensors": framework}
    samples = labelled() if ours is DataCollatorForTokenClassification else translations()
    assert_collates_as(theirs(**options), ours(**options), of_kind(kind, samples), batches=1)


@both
def test_the_call_chooses_the_framework(ours: Any, theirs: Any) -> None:
    tokenizer = word_tokenizer()
    assert_same(ours(tokenizer)(labelled(), return_tensors="np"), theirs(tokenizer)(labelled(), return_tensors="np"))


@pytest.mark.parametrize("key", ["label", "label_ids"])
@both
def test_other_names_of_labels(ours: Any, theirs: Any, key: str) -> None:
    collate = ours(word_tokenizer())
    samples = [{"input_ids": sample["input_ids"], key: sample["labels"]} for sample in labelled()]
    assert_same(collate(samples), collate(labelled()))


@both
def test_without_labels(ours: Any, theirs: Any) -> None:
    for more in ({}, {"labels": None}):
        batch = ours(word_tokenizer())([{"input_ids": [5, 6], **more}, {"input_ids": [7], **more}])
        assert list(batch) == ["input_ids", "attention_mask"]


@both
def test_rows_that_need_no_padding(ours: Any, theirs: Any) -> None:
    samples = [{"input_ids": [5, 6], "labels": [1, 2]}] * 2
    options = {"tokenizer": word_tokenizer(), "padding": False}
    assert_collates_as(theirs(**options), ours(**options), samples, batches=1)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"input_ids": [5], "labels": [1], "label": [1]}], "have 'labels' and 'label'"),
        ([{"input_ids": [5], "labels": [1]}, {"input_ids": [5]}], "sample 1 of the batch has no 'labels'"),
        ([{"input_ids": [5], "labels": [1]}, {"input_ids": [5], "labels": None}], "'labels' of sample 1 .* is None"),
        ([{"input_ids": [5], "labels": 1}], "'labels' of sample 0 .* is 1; it takes one row of integers"),
        ([{"input_ids": [5], "labels": [0.5]}], r"'labels' of sample 0 .* is \[0.5\]"),
        ([{"input_ids": [5], "labels": [[1]]}], r"'labels' of sample 0"),
        ([], "no samples"),
    ],
)
@both
def test_labels_that_cannot_be_used_are_named(ours: Any, theirs: Any, samples: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{ours.__name__}.*{message}"):
        ours(word_tokenizer())(samples)


@both
def test_whole_floats_are_integers(ours: Any, theirs: Any) -> None:
    batch = ours(word_tokenizer())([{"input_ids": [5, 6], "labels": np.array([1.0, 2.0])}])
    assert batch["labels"].tolist() == [[1, 2]]


def test_more_labels_than_tokens_are_refused() -> None:
    samples = [{"input_ids": [5, 6], "labels": [1, 2]}, {"input_ids": [5], "labels": [1, 2, 3]}]
    with pytest.raises(ValueError, match="sample 1 of the batch has 3 labels, but the batch has 2 tokens"):
        DataCollatorForTokenClassification(word_tokenizer())(samples)


def test_translations_that_do_not_fit_are_refused() -> None:
    samples = [{"input_ids": [5], "labels": [1, 2, 3]}, {"input_ids": [5], "labels": [1]}]
    with pytest.raises(ValueError, match="sample 0 of the batch has 3 labels, but max_length=2; truncate"):
        DataCollatorForSeq2Seq(word_tokenizer(), padding="max_length", max_length=2)(samples)
    with pytest.raises(ValueError, match="padding=False, but the labels of the batch differ in length"):
        DataCollatorForSeq2Seq(word_tokenizer(), padding=False)(samples)


class Shifting:
    """A model that makes the decoder's inputs of labels; only tensors can be shifted."""

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        shifted = labels.roll(1, dims=-1)
        shifted[:, 0] = 9
        return shifted.masked_fill(shifted == -100, PAD)


@pytest.mark.parametrize("model", [Shifting(), object()])
def test_decoder_inputs(model: Any) -> None:
    tokenizer = word_tokenizer()
    theirs = transformers.DataCollatorForSeq2Seq(tokenizer, model=model)
    ours = DataCollatorForSeq2Seq(tokenizer, model=model)
    (batch,) = assert_collates_as(theirs, ours, translations(), batches=1)
    assert ("decoder_input_ids" in batch) == isinstance(model, Shifting)
    arrays = ours(translations(), return_tensors="np")
    assert_same(arrays, {key: value.numpy() for key, value in batch.items()})
    assert "decoder_input_ids" not in ours([{"input_ids": [5]}])


@settings(deadline=None)
@given(
    lengths=strategies.lists(strategies.integers(1, 12), min_size=1, max_size=5),
    multiple=strategies.sampled_from([None, 1, 4, 8]),
    side=strategies.sampled_from(["left", "right"]),
)
def test_every_label_stands_at_its_token(lengths: list[int], multiple: int | None, side: str) -> None:
    rows = [list(range(5, 5 + length)) for length in lengths]
    samples = [{"input_ids": row, "labels": [token + 100 for token in row]} for row in rows]
    batch = DataCollatorForTokenClassification(word_tokenizer(side), pad_to_multiple_of=multiple)(samples)
    held = batch["attention_mask"].bool()
    assert torch.equal(batch["labels"][held], batch["input_ids"][held] + 100)
    assert (batch["labels"][~held] == -100).all()
    assert held.sum(1).tolist() == lengths
    assert batch["labels"].shape[1] % (multiple or 1) == 0
