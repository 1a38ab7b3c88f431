"""Making a batch of a list of samples. Samples are read, never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mainspring.data.columns import LABEL_COLUMNS, ignored_columns_message, nothing_left

Batch = dict[str, Any]

DataCollator = Callable[[list[Any]], Batch]
"""What ``data_collator`` takes: a function, or an object with ``__call__``, that makes a batch of a list of samples."""


class DataCollatorMixin:
    """Choose ``torch_call`` or ``numpy_call`` by ``return_tensors``, ``"pt"`` or ``"np"``."""

    return_tensors: str

    def __call__(self, features: list[Any], return_tensors: str | None = None) -> Any:
        """Make a batch; ``return_tensors`` overrides the attribute."""
        framework = self.return_tensors if return_tensors is None else return_tensors
        if framework == "pt":
            return self.torch_call(features)
        if framework == "np":
            return self.numpy_call(features)
        raise _unknown_framework(framework)

    def torch_call(self, features: list[Any]) -> Any:
        """A batch of torch tensors."""
        raise NotImplementedError(f"{type(self).__name__} cannot return torch tensors")

    def numpy_call(self, features: list[Any]) -> Any:
        """A batch of NumPy arrays."""
        raise NotImplementedError(f"{type(self).__name__} cannot return NumPy arrays")


def default_data_collator(features: list[Any], return_tensors: str = "pt") -> Batch:
    """Stack samples of equal shapes into a batch.

    ``label`` (a number) or ``label_ids`` (a sequence) becomes ``labels``, of integers if the first sample's are, else
    float32. Every other entry keeps its name; strings and None in the first sample leave the entry out.

    Args:
        features: Mappings, or objects whose attributes are taken.
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.

    Returns:
        Name to tensor of shape (samples, ...).

    Raises:
        ValueError: If there are no samples, a sample lacks an entry, or an entry's shapes differ.
    """
    if return_tensors == "pt":
        return _stacked(features, _torch_column, _torch_labels)
    if return_tensors == "np":
        return _stacked(features, _numpy_column, _numpy_labels)
    raise _unknown_framework(return_tensors)


@dataclass
class DefaultDataCollator(DataCollatorMixin):
    """:func:`default_data_collator` as an object.

    Args:
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.
    """

    return_tensors: str = "pt"

    def __call__(self, features: list[Any], return_tensors: str | None = None) -> Batch:
        """Make a batch; ``return_tensors`` overrides the attribute."""
        return default_data_collator(features, self.return_tensors if return_tensors is None else return_tensors)


def _unknown_framework(name: object) -> ValueError:
    return ValueError(f"return_tensors={name!r} is not known: use 'pt' (torch) or 'np' (NumPy)")


_Column = Callable[[list[Any]], Any]
_LabelColumn = Callable[[list[Any], bool], Any]


def _stacked(features: list[Any], column: _Column, label_column: _LabelColumn) -> Batch:
    rows = _rows(features)
    first = rows[0]
    batch: Batch = {}
    label_key = next((key for key in LABEL_COLUMNS if first.get(key) is not None), None)
    if label_key is not None:
        whole = _are_integers(first[label_key], inside=label_key == "label_ids")
        batch["labels"] = _built(rows, label_key, lambda values: label_column(values, whole))
    for key, value in first.items():
        if value is not None and key not in LABEL_COLUMNS and not isinstance(value, str):
            batch[key] = _built(rows, key, column)
    return batch


def _rows(features: list[Any]) -> Sequence[Mapping[str, Any]]:
    if not features:
        raise ValueError("cannot make a batch of no samples: the sampler or the dataset gave an empty list")
    if isinstance(features[0], Mapping):
        return features
    try:
        return [vars(feature) for feature in features]
    except TypeError:
        raise TypeError(
            f"the default collator takes mappings or objects with attributes, not {type(features[0]).__name__}: pass a "
            "data_collator that makes a batch of them"
        ) from None


def _built(rows: Sequence[Mapping[str, Any]], key: str, column: _Column) -> Any:
    try:
        return column([row[key] for row in rows])
    except KeyError:
        lacking = next(number for number, row in enumerate(rows) if key not in row)
        raise ValueError(f"sample {lacking} of the batch has no {key!r}, which sample 0 has") from None
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"the values of {key!r} cannot be stacked ({error}); if their lengths differ, pass a data_collator that "
            "pads, such as DataCollatorWithPadding"
        ) from error


def _torch_column(values: list[Any]) -> torch.Tensor:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(values)
    if isinstance(first, np.ndarray):
        return torch.from_numpy(np.array(values))
    return _tensor_of_numbers(values)


def _tensor_of_numbers(values: list[Any]) -> torch.Tensor:
    """``torch.tensor(values)``, whose own walk through nested lists is several times slower than NumPy's."""
    leaf: Any = values
    while isinstance(leaf, (list, tuple)) and leaf:
        leaf = leaf[0]
    if type(leaf) in (int, float, bool):
        array = np.array(values)
        if array.dtype == np.int64 or array.dtype == np.bool_:
            return torch.from_numpy(array)
        if array.dtype == np.float64:
            return torch.from_numpy(array).to(torch.get_default_dtype())
    return torch.tensor(values)


def _torch_labels(values: list[Any], whole: bool) -> torch.Tensor:
    if all(isinstance(value, torch.Tensor) for value in values):
        stacked = torch.stack(values)
        return stacked if values[0].dim() else stacked.to(torch.long if whole else torch.float)
    return torch.from_numpy(np.array(_no_text(values), dtype=np.int64 if whole else np.float32))


def _numpy_column(values: list[Any]) -> np.ndarray[Any, Any]:
    # np.array alone would walk through a tensor element by element.
    return np.array([np.asarray(value) for value in values] if isinstance(values[0], torch.Tensor) else values)


def _numpy_labels(values: list[Any], whole: bool) -> np.ndarray[Any, Any]:
    if getattr(values[0], "ndim", 0):
        return _numpy_column(values)
    return np.array(_no_text(values), dtype=np.int64 if whole else np.float32)


def _no_text(labels: list[Any]) -> list[Any]:
    if isinstance(labels[0], str):  # NumPy would read "1" as a number
        raise TypeError(f"labels are numbers, not text such as {labels[0]!r}")
    return labels


def _are_integers(label: Any, inside: bool) -> bool:
    """Whether a label is an integer or a truth value.

    Args:
        label: A number, or several.
        inside: Judge several by the first of them. Else a list counts as not an integer: the targets of a multi-label
            problem are floats, however they are written.
    """
    if isinstance(label, torch.Tensor):
        return not label.is_floating_point()
    if isinstance(label, np.ndarray):
        return bool(np.issubdtype(label.dtype, np.integer))
    if isinstance(label, Sequence):
        return inside and (not label or _are_integers(label[0], inside=False))
    return isinstance(label, (int, np.integer))


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
        with _no_advice_on_padding(self.tokenizer):
            batch = self.tokenizer.pad(
                features,
                padding=self.padding,
                max_length=self.max_length,
                pad_to_multiple_of=self.pad_to_multiple_of,
                return_tensors=self.return_tensors,
            )
        for key in LABEL_COLUMNS:
            if key in batch:
                batch["labels"] = batch.pop(key)
        return batch


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


class RemoveColumnsCollator:
    """Leave out the entries of mapping samples that the model does not take, then collate.

    Args:
        data_collator: Collates what is left.
        signature_columns: The entries to keep.
        logger: Told once which entries are left out; needs ``model_name``.
        model_name: For the messages.
        description: Which set this is, such as ``"training"``; for the messages.

    Raises:
        ValueError: When called, if nothing is left of a sample.
    """

    def __init__(
        self,
        data_collator: Callable[[list[Any]], Any],
        signature_columns: Sequence[str],
        logger: Any = None,
        model_name: str | None = None,
        description: str | None = None,
    ) -> None:
        self.data_collator = data_collator
        self.signature_columns = signature_columns
        self.logger = logger
        self.model_name = model_name
        self.description = description
        self.message_logged = False

    def __call__(self, features: list[Any]) -> Any:
        """Collate the reduced samples; samples that are no dicts pass as they are."""
        kept = frozenset(self.signature_columns)
        return self.data_collator([self._reduced(feature, kept) for feature in features])

    def _reduced(self, feature: Any, kept: frozenset[str]) -> Any:
        if not isinstance(feature, dict) or feature.keys() <= kept:
            return feature
        reduced = {key: value for key, value in feature.items() if key in kept}
        ignored = [key for key in feature if key not in kept]
        if not reduced:
            raise nothing_left(ignored, self.signature_columns, self.model_name or "the model", self.description)
        self._tell_once(ignored)
        return reduced

    def _tell_once(self, ignored: list[str]) -> None:
        if self.logger and self.model_name and not self.message_logged:
            self.message_logged = True
            self.logger.info(ignored_columns_message(ignored, self.model_name, self.description))
