"""What the tests of collators share: tokenizers, texts, and a comparison with the reference under the same seeds."""

from __future__ import annotations

import copy
import random
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models

SPECIAL = ("[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]")
PAD, UNK, MASK, CLS, SEP = range(5)
VOCABULARY = 200
KINDS = ("dicts of lists", "dicts of tensors", "dicts of arrays", "user dicts", "encodings")


def word_tokenizer(side: str = "right", pad_token: str | None = "[PAD]", mask_token: str | None = "[MASK]") -> Any:
    """A tokenizer of words "w5", "w6", ... and the special tokens."""
    words = {**{token: number for number, token in enumerate(SPECIAL)}, **{f"w{i}": i for i in range(5, VOCABULARY)}}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    optional = {"pad_token": pad_token, "mask_token": mask_token}
    special |= {name: token for name, token in optional.items() if token is not None}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, padding_side=side, **special)


def texts(count: int = 6, seed: int = 0, even: bool = False) -> list[list[int]]:
    """Rows of ids of 3 to 24 tokens, a special one at each end; of an even number of them, if asked for."""
    numbers = np.random.default_rng(seed)
    lengths = [int(n) for n in numbers.integers(1, 23, count)]
    lengths = [n + n % 2 for n in lengths] if even else lengths
    return [[CLS, *numbers.integers(5, VOCABULARY, n).tolist(), SEP] for n in lengths]


def of_kind(kind: str, samples: list[dict[str, Any]]) -> list[Any]:
    """The same samples in another form; numbers and lists are values in all of them."""
    if kind == "dicts of lists":
        return samples
    if kind == "user dicts":
        return [UserDict(sample) for sample in samples]
    if kind == "encodings":
        return [transformers.BatchEncoding(sample) for sample in samples]
    convert: Callable[[Any], Any] = torch.tensor if kind == "dicts of tensors" else np.array
    return [{key: convert(value) for key, value in sample.items()} for sample in samples]


def seed_all(seed: int) -> None:
    """Seed all global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def state_of_generators() -> list[Any]:
    """The states of all global generators, to be compared."""
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]


def assert_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """The same entries in the same order, of the same types, bit for bit."""
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        assert type(ours[key]) is type(expected), key
        if isinstance(expected, (torch.Tensor, np.ndarray)):
            assert ours[key].dtype == expected.dtype, key
            assert ours[key].shape == expected.shape, key
            assert ours[key].tolist() == expected.tolist(), key
        else:
            assert ours[key] == expected


def assert_collates_as(theirs: Any, ours: Any, samples: list[Any], batches: int = 2) -> list[Any]:
    """Several batches with the same seeds are the same, draw the same, and leave the samples alone.

    Returns:
        Our batches.
    """
    before = copy.deepcopy(samples)
    seed_all(7)
    expected = [theirs(samples) for _ in range(batches)]
    after = state_of_generators()
    seed_all(7)
    actual = [ours(samples) for _ in range(batches)]
    assert state_of_generators() == after
    for left, right in zip(actual, expected, strict=True):
        assert_same(left, right)
    assert repr(samples) == repr(before)
    for batch in actual:
        overwrite(batch)
    assert repr(samples) == repr(before)
    seed_all(7)
    return [ours(samples) for _ in range(batches)]


def overwrite(batch: Mapping[str, Any]) -> None:
    """Change every number of a batch, as a model might in place."""
    for value in batch.values():
        if isinstance(value, (torch.Tensor, np.ndarray)):
            value[...] = 0
