"""Samples with a sequence of labels each, padded apart from the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mainspring.data.collators.base import DataCollatorMixin, mappings
from mainspring.data.collators.padding import (
    Integers,
    in_framework,
    padded,
    padded_rows,
    padding_side,
    rounded_up,
)
from mainspring.data.columns import LABEL_COLUMNS

Samples = Sequence[Mapping[str, Any]]


@dataclass
class DataCollatorForTokenClassification(DataCollatorMixin):
    """Pad inputs, and labels of which there is one per token, to one length on the tokenizer's side.

    The labels are the samples' ``labels``, ``label`` or ``label_ids``; they come out as ``labels``. There may be none.

    Args:
        tokenizer: Anything with a ``pad`` method of a tokenizer's signature.
        padding: True or ``"longest"``: to the longest of the batch; ``"max_length"``: to ``max_length``; False: not.
        max_length: In tokens; the model's by default.
        pad_to_multiple_of: Round the length up to a multiple.
        label_pad_token_id: What labels are padded with; losses ignore -100.
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.
    """

    tokenizer: Any
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    label_pad_token_id: int = -100
    return_tensors: str = "pt"

    def torch_call(self, features: list[Any]) -> Any:
        """A batch of torch tensors."""
        return self._batch(features, "pt")

    def numpy_call(self, features: list[Any]) -> Any:
        """A batch of NumPy arrays."""
        return self._batch(features, "np")

    def _batch(self, features: list[Any], framework: str) -> Any:
        name = type(self).__name__
        inputs, labels = labels_apart(mappings(features, name), name)
        batch = padded(
            self.tokenizer,
            inputs,
            framework,
            padding=self.padding,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        if labels is not None:
            length = batch["input_ids"].shape[1]
            _refuse_longer(labels, length, name, f"the batch has {length} tokens; give each token one label")
            rows = padded_rows(labels, self.label_pad_token_id, length, padding_side(self.tokenizer))
            batch["labels"] = in_framework(rows, framework)
        return batch


@dataclass
class DataCollatorForSeq2Seq:
    """Pad inputs, and labels that are texts of their own, each to one length on the tokenizer's side.

    The labels are the samples' ``labels``, ``label`` or ``label_ids``; they come out as ``labels``. There may be none.

    Args:
        tokenizer: Anything with a ``pad`` method of a tokenizer's signature.
        model: If it has a ``prepare_decoder_input_ids_from_labels``, ``decoder_input_ids`` are made with that.
        padding: True or ``"longest"``: to the longest of the batch; ``"max_length"``: inputs and labels to
            ``max_length``; False: not.
        max_length: In tokens; the model's by default.
        pad_to_multiple_of: Round both lengths up to a multiple.
        label_pad_token_id: What labels are padded with; losses ignore -100.
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.
    """

    tokenizer: Any
    model: Any = None
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    label_pad_token_id: int = -100
    return_tensors: str = "pt"

    def __call__(self, features: list[Any], return_tensors: str | None = None) -> Any:
        """Make a batch; ``return_tensors`` overrides the attribute."""
        framework = self.return_tensors if return_tensors is None else return_tensors
        name = type(self).__name__
        inputs, labels = labels_apart(mappings(features, name), name)
        batch = padded(
            self.tokenizer,
            inputs,
            framework,
            padding=self.padding,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        if labels is not None:
            batch["labels"] = in_framework(self._padded_labels(labels, name), framework)
            if hasattr(self.model, "prepare_decoder_input_ids_from_labels"):
                batch["decoder_input_ids"] = self._decoder_inputs(batch["labels"], framework)
        return batch

    def _padded_labels(self, labels: list[Integers], name: str) -> Integers:
        length = max(map(len, labels))
        if self.padding is False or self.padding == "do_not_pad":
            if any(len(row) < length for row in labels):
                raise ValueError(f"{name}: padding={self.padding!r}, but the labels of the batch differ in length")
        else:
            if self.padding == "max_length" and self.max_length is not None:
                length = self.max_length
                _refuse_longer(labels, length, name, f"max_length={length}; truncate them")
            length = rounded_up(length, self.pad_to_multiple_of)
        return padded_rows(labels, self.label_pad_token_id, length, padding_side(self.tokenizer))

    def _decoder_inputs(self, labels: Any, framework: str) -> Any:
        ids = self.model.prepare_decoder_input_ids_from_labels(labels=torch.as_tensor(labels))
        return ids.numpy() if framework == "np" else ids


def labels_apart(features: Samples, collator: str) -> tuple[Samples, list[Integers] | None]:
    """The samples without their labels, and the labels of each.

    Args:
        features: Mappings with the same entries.
        collator: Its name, for messages.

    Returns:
        The samples as they are and None if they have no labels, or None for them.

    Raises:
        ValueError: If labels stand under two names, or are not rows of integers.
    """
    keys = [key for key in ("labels", *LABEL_COLUMNS) if key in features[0]]
    if len(keys) > 1:
        raise ValueError(f"{collator}: the samples have {' and '.join(map(repr, keys))}; keep the one that is meant")
    if not keys:
        return features, None
    inputs = [{key: value for key, value in feature.items() if key != keys[0]} for feature in features]
    if all(feature[keys[0]] is None for feature in features):
        return inputs, None
    return inputs, [_integers(feature[keys[0]], keys[0], number, collator) for number, feature in enumerate(features)]


def _integers(labels: Any, key: str, number: int, collator: str) -> Integers:
    row = np.asarray(labels)
    whole = row.astype(np.int64) if row.ndim == 1 and row.dtype.kind in "iufb" else None
    if whole is None or (row.dtype.kind == "f" and not np.array_equal(whole, row)):
        raise ValueError(
            f"{collator}: {key!r} of sample {number} of the batch is {labels!r:.80}; it takes one row of integers"
        )
    return whole


def _refuse_longer(labels: list[Integers], length: int, collator: str, why: str) -> None:
    for number, row in enumerate(labels):
        if len(row) > length:
            raise ValueError(f"{collator}: sample {number} of the batch has {len(row)} labels, but {why}")
