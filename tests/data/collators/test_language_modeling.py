"""Masked and causal language modelling, against the reference under the same seeds."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies

from mainspring.data.collators import DataCollatorForLanguageModeling
from mainspring.data.collators.tokens import is_special, whole_words, words_by_offsets
from mainspring.errors import OptionError
from tests.data.collators.oracle import (
    CLS,
    KINDS,
    MASK,
    SEP,
    VOCABULARY,
    assert_collates_as,
    assert_same,
    of_kind,
    texts,
    word_tokenizer,
)

REPLACEMENTS = [(0.8, 0.1), (1.0, 0.0), (1, 0), (0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (0.0, 0.5), (0.8, 0.0), (0.3, 0.7)]
WHOLE = {"whole_word_mask": True, "mask_replace_prob": 1.0, "random_replace_prob": 0.0}


def samples(**more: Any) -> list[dict[str, Any]]:
    return [{"input_ids": row, **more} for row in texts()]


def in_words(sizes: list[list[int]]) -> list[dict[str, Any]]:
    """Texts of words of so many tokens of two letters each, a space between them, a special token at each end."""
    found = []
    for text in sizes:
        offsets, place = [(0, 0)], 0
        for size in text:
            offsets += [(place + 2 * token, place + 2 * token + 2) for token in range(size)]
            place += 2 * size + 1
        ids = [CLS, *range(5, 4 + len(offsets)), SEP]
        found.append({"input_ids": ids, "offset_mapping": [*offsets, (0, 0)]})
    return found


def same(theirs_and_ours: dict[str, Any], rows: list[Any], batches: int = 3) -> list[Any]:
    theirs = transformers.DataCollatorForLanguageModeling(**theirs_and_ours)
    return assert_collates_as(theirs, DataCollatorForLanguageModeling(**theirs_and_ours), rows, batches)


@pytest.mark.parametrize("seed", [None, 0, 41])
@pytest.mark.parametrize("replacement", REPLACEMENTS, ids=str)
@pytest.mark.parametrize("framework", ["pt", "np"])
def test_masks_are_the_reference_s(framework: str, replacement: tuple[float, float], seed: int | None) -> None:
    mask, words = replacement
    options = {"mask_replace_prob": mask, "random_replace_prob": words, "seed": seed, "mlm_probability": 0.4}
    same({"tokenizer": word_tokenizer(), "return_tensors": framework, **options}, samples())


@pytest.mark.parametrize("mlm", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("kind", [*KINDS, "rows", "arrays", "tensors"])
def test_every_kind_of_text(kind: str, framework: str, side: str, mlm: bool) -> None:
    convert: dict[str, Any] = {"rows": list, "arrays": np.array, "tensors": torch.tensor}
    if (kind, framework) == ("tensors", "np"):
        pytest.skip("the reference makes no arrays of tensors")
    rows = [convert[kind](row) for row in texts()] if kind in convert else of_kind(kind, samples())
    options = {"tokenizer": word_tokenizer(side), "mlm": mlm, "return_tensors": framework}
    same({**options, "mlm_probability": 0.5, "pad_to_multiple_of": 8}, rows)


@pytest.mark.parametrize("mlm", [True, False])
@pytest.mark.parametrize("framework", ["pt", "np"])
def test_special_tokens_that_samples_name(framework: str, mlm: bool) -> None:
    rows = [{"input_ids": row, "special_tokens_mask": [token % 3 == 0 for token in row]} for row in texts()]
    rows = [{**row, "special_tokens_mask": list(map(int, row["special_tokens_mask"]))} for row in rows]
    tokenizer = word_tokenizer()
    batches = same({"tokenizer": tokenizer, "mlm": mlm, "mlm_probability": 1.0, "return_tensors": framework}, rows)
    if mlm:
        predicted = np.asarray(batches[0]["labels"])
        assert not (predicted[predicted != -100] % 3 == 0).any()


def test_rows_that_need_no_padding_need_no_padding_token() -> None:
    options = {"tokenizer": word_tokenizer(pad_token=None), "mlm": False}
    same(options, [[5, 6], [7, 8]])
    with pytest.raises(ValueError, match="DataCollatorForLanguageModeling has to pad, but .* has no padding token"):
        DataCollatorForLanguageModeling(**options)([[5, 6], [7]])


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("seed", [None, 3])
def test_whole_words_are_the_reference_s(framework: str, seed: int | None) -> None:
    rows = in_words([[1, 3, 2, 1, 1], [2, 2, 2, 2], [8], [1] * 8])
    same({"tokenizer": word_tokenizer(), "return_tensors": framework, "seed": seed, **WHOLE}, rows)


def test_whole_words_of_texts_of_different_lengths() -> None:
    """The reference cannot make a batch of them."""
    rows = in_words([[1, 3, 2], [2], [4, 1, 1, 2]])
    for side in ("left", "right"):
        collate = DataCollatorForLanguageModeling(word_tokenizer(side), mlm_probability=0.5, **WHOLE)
        batch = collate(rows)
        assert batch["input_ids"].shape == batch["labels"].shape == (3, 10)
        assert sorted(batch) == ["attention_mask", "input_ids", "labels"]


@settings(deadline=None)
@given(
    sizes=strategies.lists(strategies.lists(strategies.integers(1, 5), min_size=1, max_size=8), min_size=1, max_size=5),
    seed=strategies.integers(0, 99),
    framework=strategies.sampled_from(["pt", "np"]),
)
def test_words_are_masked_together(sizes: list[list[int]], seed: int, framework: str) -> None:
    collate = DataCollatorForLanguageModeling(
        word_tokenizer(), mlm_probability=0.5, seed=seed, return_tensors=framework, **WHOLE
    )
    batch = collate(in_words(sizes))
    for row, text in zip(np.asarray(batch["labels"]) != -100, sizes, strict=True):
        ends = np.cumsum([1, *text])
        assert not row[0]
        assert not row[ends[-1] :].any()
        assert all(row[begin:end].all() or not row[begin:end].any() for begin, end in itertools.pairwise(ends))


@settings(deadline=None)
@given(data=strategies.data(), probability=strategies.sampled_from([0.0, 0.3, 1.0]))
def test_masked_tokens_are_labelled_and_no_other(data: strategies.DataObject, probability: float) -> None:
    row = strategies.lists(strategies.integers(0, VOCABULARY - 1), min_size=1, max_size=12)
    rows = data.draw(strategies.lists(row, min_size=1, max_size=5))
    framework = data.draw(strategies.sampled_from(["pt", "np"]))
    collate = DataCollatorForLanguageModeling(
        word_tokenizer(),
        mlm_probability=probability,
        return_tensors=framework,
        seed=data.draw(strategies.integers(0, 9)),
    )
    batch = {key: np.asarray(value) for key, value in collate([{"input_ids": row} for row in rows]).items()}
    length = batch["input_ids"].shape[1]
    plain = np.array([row + [0] * (length - len(row)) for row in rows])
    predicted = batch["labels"] != -100
    assert not predicted[plain < 5].any()
    assert (batch["labels"][predicted] == plain[predicted]).all()
    assert (batch["input_ids"][~predicted] == plain[~predicted]).all()
    if probability in (0, 1):
        assert (predicted == (plain >= 5) * bool(probability)).all()


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_rates(framework: str) -> None:
    rows = [{"input_ids": [100] * 500} for _ in range(200)]
    batch = DataCollatorForLanguageModeling(word_tokenizer(), seed=1, return_tensors=framework)(rows)
    ids, predicted = np.asarray(batch["input_ids"]), np.asarray(batch["labels"]) != -100
    assert predicted.mean() == pytest.approx(0.15, abs=0.005)
    assert (ids[predicted] == MASK).mean() == pytest.approx(0.8, abs=0.02)
    assert (ids[predicted] == 100).mean() == pytest.approx(0.1, abs=0.02)
    others = ids[predicted & (ids != 100) & (ids != MASK)]
    assert len(np.unique(others)) > 190, "random tokens come from all of the vocabulary"


def test_masking_methods_leave_their_inputs_alone() -> None:
    ids = torch.randint(5, VOCABULARY, (4, 30))
    before = ids.clone()
    collate = DataCollatorForLanguageModeling(word_tokenizer(), mlm_probability=1.0)
    assert (collate.torch_mask_tokens(ids)[0] != before).any()
    assert (collate.numpy_mask_tokens(ids.numpy())[0] != before.numpy()).any()
    assert torch.equal(ids, before)


def test_overridden_masking_counts() -> None:
    class Own(DataCollatorForLanguageModeling):
        def torch_mask_tokens(self, inputs: Any, special_tokens_mask: Any = None, offset_mapping: Any = None) -> Any:
            return inputs + 1, inputs

    batch = Own(word_tokenizer())([[5, 6]])
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[6, 7]], [[5, 6]])


def test_arrays_of_tensors() -> None:
    """The reference makes none."""
    collate = DataCollatorForLanguageModeling(word_tokenizer(), seed=1, return_tensors="np")
    of_tensors, of_lists = (collate([convert(row) for row in texts()]) for convert in (torch.tensor, list))
    collate.seed = 2
    other = collate(texts())
    collate.seed = 1
    assert_same(collate(texts()), of_tensors)
    assert of_lists["labels"].tolist() != of_tensors["labels"].tolist() != other["labels"].tolist()


def test_ids_of_32_bits() -> None:
    batch = DataCollatorForLanguageModeling(word_tokenizer())([torch.tensor([5, 6], dtype=torch.int32)])
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_a_tokenizer_s_own_rule_of_special_tokens_counts() -> None:
    class Odd:
        all_special_ids = (0,)

        def get_special_tokens_mask(self, ids: list[int], already_has_special_tokens: bool) -> list[int]:
            assert already_has_special_tokens
            return [token % 2 for token in ids]

    assert is_special(Odd(), np.array([[0, 1], [2, 3]])).tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize(
    "options",
    [
        {"mlm_probability": None},
        {"mlm_probability": 1.5},
        {"mask_replace_prob": -0.1},
        {"random_replace_prob": 0.3},
        {"mlm": False, "whole_word_mask": True},
        {"tokenizer": word_tokenizer(mask_token=None)},
    ],
    ids=repr,
)
def test_options_that_cannot_be_are_refused_as_the_reference_does(options: dict[str, Any]) -> None:
    options = {"tokenizer": word_tokenizer(), **options}
    with pytest.raises(ValueError):
        transformers.DataCollatorForLanguageModeling(**options)
    with pytest.raises(OptionError, match=next(name for name in [*options, "mlm"] if name != "tokenizer")):
        DataCollatorForLanguageModeling(**options)


def test_what_whole_words_change_is_told() -> None:
    with pytest.warns(UserWarning, match="mask_replace_prob is 1"):
        collate = DataCollatorForLanguageModeling(word_tokenizer(), whole_word_mask=True)
    assert (collate.mask_replace_prob, collate.random_replace_prob) == (1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DataCollatorForLanguageModeling(word_tokenizer(), **WHOLE)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "no samples"),
        ([{"x": [1]}], {}, "sample 0 of the batch has no 'input_ids', only 'x'"),
        ([{"input_ids": [5]}], WHOLE, "sample 0 of the batch has no 'offset_mapping'"),
        ([[5, 6]], WHOLE, "sample 0 .* has no 'offset_mapping', which .* remove_unused_columns=False"),
    ],
)
def test_samples_that_cannot_be_masked_are_named(rows: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DataCollatorForLanguageModeling.*{message}"):
        DataCollatorForLanguageModeling(word_tokenizer(), **options)(rows)


def test_words_end_at_spaces_special_tokens_and_gaps() -> None:
    offsets = np.array([[(0, 0), (0, 2), (2, 4), (4, 4), (5, 7), (7, 8), (8, 9), (0, 0)]])
    special = np.array([[True, False, False, False, False, True, False, True]])
    words, first = words_by_offsets(offsets, special)
    assert words.tolist() == [[-1, 1, 1, 1, 2, -1, 3, -1]]
    assert first.tolist() == [[False, True, False, False, True, False, True, False]]
    chosen = np.array([[True, False, True, False, False, False, True, False]])
    assert whole_words(words, chosen).astype(int).tolist() == [[0, 1, 1, 1, 0, 0, 1, 0]]
