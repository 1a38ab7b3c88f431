"""Samples of different lengths, padded to one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mainspring.data.collators.base import mappings
from mainspring.data.collators.default import tensor_of_array
from mainspring.data.columns import LABEL_COLUMNS

Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class DataCollatorWithPadding:
    """Pad the samples of a batch to one length with the tokenizer's own ``pad``.

    ``label`` or ``label_ids`` becomes ``labels``.

    Args:
        tokenizer: Anything with a ``pad`` method of a tokenizer's signature.
        padding: True or ``"longest"``: to the longest of the batch; ``"max_length"``: to ``max_length``; False: not.
        max_length: In tokens; the model's by default.
        pad_to_multiple_of: Round the length up to a multiple, which some hardware multiplies faster.
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.
    """

    tokenizer: Any
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """Make a batch: whatever mapping the tokenizer's ``pad`` returns."""
        batch = padded(
            self.tokenizer,
            mappings(features, type(self).__name__),
            self.return_tensors,
            padding=self.padding,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        for key in LABEL_COLUMNS:
            if key in batch:
                batch["labels"] = batch.pop(key)
        return batch


def padded(tokenizer: Any, features: Sequence[Mapping[str, Any]], return_tensors: str, **how: Any) -> Any:
    """What the tokenizer's ``pad`` makes of the samples.

    Where they hold plain numbers and whole ones in arrays, it is asked for lists, which are made into tensors here: its
    own way of doing that takes several times as long.

    Args:
        tokenizer: Anything with a ``pad`` method of a tokenizer's signature.
        features: The samples.
        return_tensors: ``"pt"`` or ``"np"``.
        how: ``padding``, ``max_length``, ``pad_to_multiple_of``.
    """
    plain = _plain_samples(features) if hasattr(tokenizer, "pad_token_id") else None
    with _no_advice_on_padding(tokenizer):
        batch = None if plain is None else _of_numbers(tokenizer.pad(plain, **how), return_tensors)
        if batch is not None:
            return batch
        # It may want a list, and it may be an object of its own kind that it wants in it: so the samples as they are.
        return tokenizer.pad(list(features), return_tensors=return_tensors, **how)


def pad_without_fast_tokenizer_warning(tokenizer: Any, *arguments: Any, **options: Any) -> Any:
    """``tokenizer.pad`` without a fast tokenizer's advice to pad while tokenizing."""
    with _no_advice_on_padding(tokenizer):
        return tokenizer.pad(*arguments, **options)


@contextmanager
def _no_advice_on_padding(tokenizer: Any) -> Iterator[None]:
    """Keep a fast tokenizer from advising, once per process, to pad while tokenizing: here that is done on purpose."""
    warned = getattr(tokenizer, "deprecation_warnings", None)
    if not isinstance(warned, dict):
        yield
        return
    advice = "Asking-to-pad-a-fast-tokenizer"
    before = warned.get(advice, False)
    warned[advice] = True
    try:
        yield
    finally:
        warned[advice] = before


def _plain_samples(features: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The samples as dicts of Python's numbers and lists of them; None if there is anything else in them."""
    plain = [{key: _plain(value) for key, value in feature.items()} for feature in features]
    return None if any(value is None for sample in plain for value in sample.values()) else plain


def _plain(value: Any) -> Any:
    # Only of these types numbers come back from a list as they were.
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.dtype in (torch.int64, torch.bool) else None
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist() if value.dtype in (np.int64, np.bool_) else None
    return value if _first_leaf_is_number(value) else None


def _first_leaf_is_number(value: Any) -> bool:
    while type(value) is list and value:
        value = value[0]
    return type(value) in (int, float, bool, list)


def _of_numbers(batch: Any, return_tensors: str) -> Any:
    """The batch with its lists made into tensors; None where that is left to the tokenizer, or to its error."""
    if return_tensors not in ("pt", "np") or not isinstance(batch, Mapping):
        return None
    for key, value in batch.items():
        if type(value) is not list:
            return None
        try:
            array = np.array(value)
        except (ValueError, OverflowError):  # rows of different lengths, integers of more than 64 bits
            return None
        if not array.size or array.dtype.kind not in "ifb":
            return None
        batch[key] = array if return_tensors == "np" else tensor_of_array(array)  # type: ignore[index]
    return batch


def rounded_up(length: int, multiple: int | None) -> int:
    """The least multiple that is not below ``length``."""
    return length if multiple is None else -(-length // multiple) * multiple


def padded_rows(rows: Sequence[Integers], value: int, length: int, side: str) -> Integers:
    """Rows of integers as one array of shape (rows, length).

    Args:
        rows: Each of at most ``length`` numbers.
        value: What is filled in.
        length: Of every row.
        side: ``"right"`` or ``"left"``: where it is filled in.
    """
    array = np.full((len(rows), length), value, dtype=np.int64)
    lengths = np.array([len(row) for row in rows])[:, None]
    places = np.arange(length)
    array[places >= length - lengths if side == "left" else places < lengths] = np.concatenate(rows)
    return array


def padding_side(tokenizer: Any) -> str:
    """Where a tokenizer pads; ``"right"`` if it does not say."""
    return str(getattr(tokenizer, "padding_side", "right"))


def in_framework(array: np.ndarray[Any, Any], framework: str) -> Any:
    """An array as it is for ``"np"``, as a tensor of the same memory for ``"pt"``."""
    return array if framework == "np" else torch.from_numpy(array)
