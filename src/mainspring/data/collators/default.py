"""Samples of equal shapes, stacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mainspring.data.collators.base import Batch, DataCollatorMixin, not_empty, unknown_framework
from mainspring.data.columns import LABEL_COLUMNS


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
    raise unknown_framework(return_tensors)


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


def torch_default_data_collator(features: list[Any]) -> Batch:
    """:func:`default_data_collator` with torch tensors."""
    return default_data_collator(features, "pt")


def numpy_default_data_collator(features: list[Any]) -> Batch:
    """:func:`default_data_collator` with NumPy arrays."""
    return default_data_collator(features, "np")


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
    if isinstance(not_empty(features, "the default collator")[0], Mapping):
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
        if array.dtype in (np.int64, np.bool_, np.float64):
            return tensor_of_array(array)
    return torch.tensor(values)


def tensor_of_array(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """What ``torch.tensor`` makes of the numbers that NumPy made this array of: floats have torch's default type."""
    tensor = torch.from_numpy(array)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


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
