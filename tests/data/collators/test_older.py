"""Collators that the newest reference has dropped."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies
from tokenizers import Tokenizer, models

from mainspring.data.collators import (
    DataCollatorForLanguageModeling,
    DataCollatorForSOP,
    DataCollatorForWholeWordMask,
)
from mainspring.errors import OptionError
from tests.data.collators.oracle import assert_same, seed_all, word_tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MASKED_BY_4_37: dict[str, Any] = json.loads(Path(__file__).with_name("whole_words.json").read_text(encoding="utf-8"))
"""Two batches each of transformers 4.37.2, seeded as below."""

TEXTS = [
    {"input_ids": [2, 5, 15, 6, 7, 16, 17, 8, 9, 3], "chinese_ref": []},
    {"input_ids": [2, 5, 6, 15, 3], "chinese_ref": []},
    {"input_ids": [2, 15, 16, 5, 3, 17, 8, 20, 21, 3], "chinese_ref": [1, 6]},
    {"input_ids": [2, 3], "chinese_ref": []},
]


def piece_tokenizer(side: str = "right") -> Any:
    """A tokenizer of ten beginnings of words, from 5, and ten continuations, from 15."""
    tokens = [*SPECIAL, *(f"a{i}" for i in range(10)), *(f"##b{i}" for i in range(10))]
    core = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, padding_side=side, **special)


@pytest.mark.parametrize(("case", "probability", "seed"), [("plain", 0.5, 3), ("refs", 0.5, 4), ("all", 1.0, 5)])
@pytest.mark.parametrize("rows", [True, False])
def test_masks_are_the_older_reference_s(case: str, probability: float, seed: int, rows: bool) -> None:
    texts: list[Any] = TEXTS if case == "refs" else [{"input_ids": text["input_ids"]} for text in TEXTS]
    if rows and case != "refs":
        texts = [torch.tensor(text["input_ids"]) for text in texts]
    before = copy.deepcopy(texts)
    collate = DataCollatorForWholeWordMask(piece_tokenizer(), mlm_probability=probability)
    seed_all(seed)
    for expected in MASKED_BY_4_37[case]:
        batch = collate(texts)
        assert {key: batch[key].tolist() for key in expected} == expected
    assert repr(texts) == repr(before)


def test_what_the_older_reference_left_out_is_there() -> None:
    batch = DataCollatorForWholeWordMask(piece_tokenizer("left"))(TEXTS)
    assert batch["attention_mask"].sum(1).tolist() == [10, 5, 10, 2]
    assert batch["attention_mask"][1].tolist() == [0] * 5 + [1] * 5
    assert not (batch["labels"][batch["attention_mask"] == 0] != -100).any()


def test_special_tokens_inside_a_text_are_not_masked() -> None:
    collate = DataCollatorForWholeWordMask(piece_tokenizer(), mlm_probability=1.0)
    (labels,) = collate([{"input_ids": [2, 5, 1, 6, 4, 3]}])["labels"].tolist()
    assert labels == [-100, 5, -100, 6, -100, -100]
    (labels,) = collate([{"input_ids": [2, 5, 6, 3], "special_tokens_mask": [1, 1, 0, 1]}])["labels"].tolist()
    assert labels == [-100, -100, 6, -100]


@settings(deadline=None)
@given(
    text=strategies.lists(strategies.integers(5, 24), min_size=1, max_size=20),
    seed=strategies.one_of(strategies.none(), strategies.integers(0, 99)),
    framework=strategies.sampled_from(["pt", "np"]),
)
def test_words_are_masked_together_up_to_the_share(text: list[int], seed: int | None, framework: str) -> None:
    collate = DataCollatorForWholeWordMask(
        piece_tokenizer(), mlm_probability=0.5, seed=seed, return_tensors=framework, pad_to_multiple_of=8
    )
    chosen = np.asarray(collate([{"input_ids": [2, *text, 3]}])["labels"])[0] != -100
    assert not chosen[0]
    assert not chosen[len(text) + 1 :].any()
    assert chosen.sum() <= max(1, round(0.5 * (len(text) + 2)))
    begins = [number for number, token in enumerate(text, start=1) if token < 15 or number == 1]
    for begin, end in zip(begins, [*begins[1:], len(text) + 1], strict=True):
        assert chosen[begin:end].all() or not chosen[begin:end].any()


@pytest.mark.parametrize("framework", ["pt", "np"])
def test_a_seed_of_its_own(framework: str) -> None:
    def batches(seed: int) -> list[Any]:
        random.seed()
        collate = DataCollatorForWholeWordMask(piece_tokenizer(), seed=seed, return_tensors=framework)
        return [collate(TEXTS)["labels"].tolist() for _ in range(4)]

    assert batches(1) == batches(1) != batches(2)


def test_a_vocabulary_without_pieces_is_told() -> None:
    with pytest.warns(UserWarning, match="no token of the vocabulary begins with '##'"):
        DataCollatorForWholeWordMask(word_tokenizer())


@pytest.mark.parametrize("options", [{"mlm": False}, {"whole_word_mask": True}])
def test_what_it_cannot_do_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        DataCollatorForWholeWordMask(piece_tokenizer(), **options)


def test_sentence_order() -> None:
    samples = [
        {"input_ids": [2, 5, 3, 6, 3], "token_type_ids": [0, 0, 0, 1, 1], "sentence_order_label": 1},
        {"input_ids": [2, 7, 3], "token_type_ids": [0, 0, 0], "sentence_order_label": 0},
    ]
    with pytest.warns(FutureWarning, match="use DataCollatorForLanguageModeling"):
        collate = DataCollatorForSOP(piece_tokenizer(), seed=1)
    batch = collate(samples)
    assert_same(batch, DataCollatorForLanguageModeling(piece_tokenizer(), seed=1)(samples))
    assert batch["sentence_order_label"].tolist() == [1, 0]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="DataCollatorForSOP: sample 0 .* has no 'sentence_order_label'"):
        collate([{"input_ids": [5], "token_type_ids": [0]}])
