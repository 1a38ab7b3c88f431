"""Permutation language modelling, against the reference under the same seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies

from mainspring.data.collators import DataCollatorForPermutationLanguageModeling
from mainspring.errors import OptionError
from tests.data.collators.oracle import (
    KINDS,
    MASK,
    PAD,
    SEP,
    assert_collates_as,
    of_kind,
    seed_all,
    texts,
    word_tokenizer,
)


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("options", [{}, {"plm_probability": 0.5, "max_span_length": 3}, {"plm_probability": 1.0}])
@pytest.mark.parametrize("kind", [*KINDS, "rows"])
def test_equals_the_reference(kind: str, options: dict[str, Any], framework: str) -> None:
    rows: list[Any] = texts(even=True)
    if kind != "rows":
        rows = of_kind(kind, [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
    if (kind, framework) == ("dicts of tensors", "np"):
        pytest.skip("the reference makes no arrays of tensors")
    options = {**options, "tokenizer": word_tokenizer(), "return_tensors": framework}
    theirs = transformers.DataCollatorForPermutationLanguageModeling(**options)
    assert_collates_as(theirs, DataCollatorForPermutationLanguageModeling(**options), rows, batches=3)


@settings(deadline=None)
@given(
    half_lengths=strategies.lists(strategies.integers(1, 12), min_size=1, max_size=4),
    seed=strategies.integers(0, 999),
    probability=strategies.sampled_from([0.1, 0.5, 1.0]),
    framework=strategies.sampled_from(["pt", "np"]),
)
def test_the_masks_say_an_order_of_prediction(
    half_lengths: list[int], seed: int, probability: float, framework: str
) -> None:
    rows = [[*range(5, 4 + 2 * half), SEP] for half in half_lengths]
    seed_all(seed)
    collate = DataCollatorForPermutationLanguageModeling(
        word_tokenizer(), plm_probability=probability, return_tensors=framework
    )
    batch = {key: np.asarray(value) for key, value in collate(rows).items()}
    length = 2 * max(half_lengths)
    for row, text in enumerate(rows):
        plain = np.array(text + [PAD] * (length - len(text)))
        hidden = batch["labels"][row] != -100
        assert not hidden[plain < 5].any()
        assert (batch["input_ids"][row] == np.where(hidden, MASK, plain)).all()
        assert (batch["labels"][row][hidden] == plain[hidden]).all()
        unseen = batch["perm_mask"][row].astype(bool)
        assert not unseen[:, ~hidden].any(), "what is not hidden is seen by all"
        assert unseen[hidden, hidden].all(), "no hidden token sees itself"
        assert unseen[~hidden & (plain >= 5)][:, hidden].all(), "what is seen by all sees nothing hidden"
        among = unseen[np.ix_(hidden, hidden)]
        count = hidden.sum()
        assert (among | among.T).all()
        assert sorted(among.sum(1)) == list(range(1, count + 1)), "hidden tokens see each other in one order"
        assert (batch["target_mapping"][row] == np.eye(length)).all()


def test_the_share_that_is_hidden() -> None:
    torch.manual_seed(0)
    rows = [[7] * 600 for _ in range(30)]
    labels = DataCollatorForPermutationLanguageModeling(word_tokenizer())(rows)["labels"]
    assert (labels != -100).float().mean().item() == pytest.approx(1 / 6, abs=0.01)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[5, 6, 7]], "the longest text of the batch has 3 tokens; .* even number"),
        ([], "no samples"),
        ([{"x": 1}], "sample 0 of the batch has no 'input_ids'"),
    ],
)
def test_texts_that_cannot_be_permuted_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DataCollatorForPermutationLanguageModeling.*{message}"):
        DataCollatorForPermutationLanguageModeling(word_tokenizer())(rows)


def test_a_mask_token_is_needed() -> None:
    with pytest.raises(ValueError, match="has no mask token"):
        DataCollatorForPermutationLanguageModeling(word_tokenizer(mask_token=None))([[5, 6]])


@pytest.mark.parametrize("options", [{"plm_probability": 0}, {"plm_probability": 1.5}, {"max_span_length": 0}])
def test_numbers_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        DataCollatorForPermutationLanguageModeling(word_tokenizer(), **options)
