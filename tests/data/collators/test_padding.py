"""Padding with a tokenizer, against the reference."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies

from mainspring.data.collators import DataCollatorWithPadding, pad_without_fast_tokenizer_warning
from mainspring.data.collators.padding import padded_rows, rounded_up
from tests.data.collators.oracle import KINDS, assert_collates_as, assert_same, of_kind, texts, word_tokenizer

SAMPLES = ({"input_ids": [1, 2, 2], "label": 1}, {"input_ids": [2], "label": 0})
OPTIONS = [{}, {"pad_to_multiple_of": 4}, {"padding": "max_length", "max_length": 26}, {"return_tensors": "np"}]


@pytest.fixture
def tokenizer() -> Any:
    return word_tokenizer()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("label_key", ["label", "label_ids", "labels"])
def test_equals_the_reference(tokenizer: Any, options: dict[str, Any], label_key: str) -> None:
    samples = [{"input_ids": s["input_ids"], label_key: s["label"]} for s in SAMPLES]
    before = copy.deepcopy(samples)
    ours = DataCollatorWithPadding(tokenizer, **options)(samples)
    assert samples == before
    theirs = transformers.DataCollatorWithPadding(tokenizer, **options)(samples)
    assert_same(dict(sorted(ours.items())), dict(sorted(theirs.items())))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_sample(kind: str, options: dict[str, Any], side: str) -> None:
    tokenizer = word_tokenizer(side)
    samples = [
        {"input_ids": row, "token_type_ids": [0] * len(row), "special_tokens_mask": [1] * len(row), "n": len(row)}
        for row in texts()
    ]
    theirs = transformers.DataCollatorWithPadding(tokenizer, **options)
    assert_collates_as(theirs, DataCollatorWithPadding(tokenizer, **options), of_kind(kind, samples), batches=1)


@pytest.mark.parametrize(
    "values",
    [
        (1, 2),
        (1.5, 2),
        (1, 2.5),
        (True, False),
        ([1, 0], [0, 1]),
        ([0.5, 1.0], [0.0, 1.0]),
        ([[1, 2]], [[3, 4]]),
        ([], []),
        (2**62, 1),
        (np.float32(1.5), np.float32(2)),
        (np.ones(2), np.zeros(2)),
        (np.ones(2, np.float16), np.zeros(2, np.float16)),
        (torch.tensor(1, dtype=torch.int32), torch.tensor(2, dtype=torch.int32)),
        (torch.tensor(True), torch.tensor(False)),
        ([torch.tensor(1)], [torch.tensor(2)]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("framework", ["pt", "np"])
def test_other_columns_keep_the_types_that_the_tokenizer_gives_them(
    tokenizer: Any, values: tuple[Any, Any], framework: str
) -> None:
    samples = [{"input_ids": [5] * (number + 1), "x": value} for number, value in enumerate(values)]
    ours = DataCollatorWithPadding(tokenizer, return_tensors=framework)
    assert_collates_as(transformers.DataCollatorWithPadding(tokenizer, return_tensors=framework), ours, samples, 1)


def test_default_dtype_is_respected(tokenizer: Any) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert DataCollatorWithPadding(tokenizer)([{"input_ids": [5], "x": 0.1}])["x"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("state", [False, True])
def test_advice_on_padding_is_held_back_and_its_state_kept(tokenizer: Any, state: bool) -> None:
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = state
    seen = []

    def pad(*arguments: Any, **options: Any) -> Any:
        seen.append(tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"])
        return tokenizer.pad(*arguments, **options)

    spy = SimpleNamespace(deprecation_warnings=tokenizer.deprecation_warnings, pad=pad)
    DataCollatorWithPadding(spy)(list(SAMPLES))
    pad_without_fast_tokenizer_warning(spy, [{"input_ids": [5]}], return_tensors="np")
    assert seen == [True, True]
    assert tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] is state


def test_anything_that_pads_will_do() -> None:
    extractor = SimpleNamespace(pad=lambda features, **options: {"x": len(features), "label": options["padding"]})
    assert DataCollatorWithPadding(extractor)([{}, {}]) == {"x": 2, "labels": True}


def test_a_tokenizer_that_gives_tensors_unasked_is_asked_for_them() -> None:
    asked = []

    def pad(features: list[Any], return_tensors: str | None = None, **options: Any) -> dict[str, Any]:
        asked.append(return_tensors)
        return {"x": torch.tensor([feature["x"] for feature in features])}

    batch = DataCollatorWithPadding(SimpleNamespace(pad=pad, pad_token_id=0))([{"x": 1}, {"x": 2}])
    assert batch["x"].tolist() == [1, 2]
    assert asked == [None, "pt"]


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "DataCollatorWithPadding cannot make a batch of no samples"),
        ([(1, 2)], TypeError, "DataCollatorWithPadding takes samples that are mappings.*sample 0.*tuple"),
        ([{"input_ids": [5]}, 3], TypeError, "sample 1 of the batch is int"),
        ([{"input_ids": [5], "x": 1}, {"input_ids": [5]}], ValueError, "sample 1 .* has no 'x', only 'input_ids'"),
        ([{"input_ids": [5], "x": "a"}, {"input_ids": [5], "x": "b"}], ValueError, "x"),
        ([{"input_ids": [5], "x": [1]}, {"input_ids": [5], "x": [1, 2]}], ValueError, "x"),
    ],
)
def test_what_cannot_be_padded_is_named(
    tokenizer: Any, samples: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DataCollatorWithPadding(tokenizer)(samples)


@settings(deadline=None)
@given(
    rows=strategies.lists(strategies.lists(strategies.integers(-(2**62), 2**62), max_size=9), min_size=1, max_size=6),
    more=strategies.integers(0, 4),
    side=strategies.sampled_from(["left", "right"]),
)
def test_rows_keep_their_numbers_on_one_side(rows: list[list[int]], more: int, side: str) -> None:
    length = max(map(len, rows)) + more
    array = padded_rows([np.array(row, dtype=np.int64) for row in rows], -1, length, side)
    assert array.shape == (len(rows), length)
    for padded, row in zip(array.tolist(), rows, strict=True):
        filled = [-1] * (length - len(row))
        assert padded == (filled + row if side == "left" else row + filled)


@pytest.mark.parametrize(("length", "multiple", "rounded"), [(5, None, 5), (5, 4, 8), (8, 4, 8), (0, 4, 0), (1, 1, 1)])
def test_lengths_are_rounded_up(length: int, multiple: int | None, rounded: int) -> None:
    assert rounded_up(length, multiple) == rounded
