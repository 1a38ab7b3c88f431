"""How long every sample is: read or measured once, and kept as long as the dataset lives."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import xxhash
from tqdm.auto import tqdm

from mainspring.data.columns import is_table
from mainspring.data.random_stream import Apart

LengthArray = np.ndarray[Any, np.dtype[np.int64]]

DEFAULT_KEY = "input_ids"
"""What is measured where nothing else is said."""

_ROWS_AT_ONCE = 100_000
_SEED = 0
"""Of what datasets draw while they are measured: the same on every process."""


class Lengths:
    """The lengths of a dataset's samples.

    They are those of a column, where there is one, else those of an entry of every sample, which is read for it: with a
    progress bar, and once for each dataset object. A list may change unnoticed: it is read once for each object of this
    class. A dataset that has ``set_epoch`` may give other samples in each epoch, and is measured anew for each.

    Args:
        dataset: Map-style; its samples are mappings.
        column: The column, or the entry of every sample, that holds its length.
        key: The entry whose ``len`` is taken where there is no such column.
        quiet: Show no progress bar.
    """

    def __init__(self, dataset: Any, column: str | None = None, key: str | None = None, *, quiet: bool = False) -> None:
        self.dataset = dataset
        self.column = column
        self.key = key or DEFAULT_KEY
        self.quiet = quiet
        self._held: tuple[int | None, LengthArray] | None = None

    @property
    def vary(self) -> bool:
        """Whether another epoch may have other lengths."""
        return callable(getattr(self.dataset, "set_epoch", None)) and not is_table(self.dataset)

    def of(self, epoch: int) -> LengthArray:
        """The lengths in an epoch; int64, not to be changed.

        Raises:
            ValueError: If the samples have neither the column nor the key.
        """
        of_epoch = epoch if self.vary else None
        if self._held is None or self._held[0] != of_epoch:
            self._held = of_epoch, self._found(of_epoch)
        return self._held[1]

    def _found(self, epoch: int | None) -> LengthArray:
        if epoch is None:
            return _kept(self.dataset, (self.column, self.key), self._measured)
        self.dataset.set_epoch(epoch)
        return self._measured()

    def _measured(self) -> LengthArray:
        lengths = _of_table(self.dataset, self.column, self.key) if is_table(self.dataset) else None
        if lengths is None:
            with Apart(_SEED):  # what augmentations draw here is not missing in training
                lengths = _sample_by_sample(self.dataset, self.column, self.key, self.quiet)
        lengths.flags.writeable = False
        return lengths


def measured_lengths(dataset: Any, key: str) -> list[int]:
    """``len(sample[key])`` of every sample; see :class:`Lengths`.

    Raises:
        ValueError: If there is no dataset or its samples are no mappings with ``key``.
    """
    if dataset is None:
        raise ValueError("dataset=None and lengths=None: pass one of them to group samples by length")
    return cast("list[int]", Lengths(dataset, key=key).of(0).tolist())


def as_lengths(values: Any) -> LengthArray:
    """Lengths as an array of int64: of a tensor, an array, or a sequence of numbers."""
    if isinstance(values, torch.Tensor):
        values = values.cpu().numpy()
    return np.asarray(values).astype(np.int64)


def digest(lengths: LengthArray) -> str:
    """A short text that is another one for other lengths."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(lengths).data)


_Name = tuple[str | None, str]
_cache: dict[int, tuple[weakref.ref[Any], dict[_Name, LengthArray]]] = {}


def _kept(dataset: Any, name: _Name, measure: Any) -> LengthArray:
    """What ``measure`` gives, kept beside the dataset where it can be told when that is gone."""
    number = id(dataset)
    reference, known = _cache.get(number, (None, {}))
    if reference is None or reference() is not dataset:
        known = {}
        try:
            _cache[number] = weakref.ref(dataset, lambda _: _cache.pop(number, None)), known
        except TypeError:  # a list: nobody tells when it is gone, nor when it changes
            return cast(LengthArray, measure())
    if name not in known:
        known[name] = measure()
    return known[name]


# ---- tables of the datasets library ----


def _of_table(dataset: Any, column: str | None, key: str) -> LengthArray | None:
    """A column read whole, whatever format or transform the samples get; None where that cannot be."""
    if column in dataset.column_names:
        return _in_pieces(dataset, column, lambda values: values.to_numpy(zero_copy_only=False))
    if key not in dataset.column_names or dataset.format["type"] == "custom":
        return None  # a transform makes the samples
    return _in_pieces(dataset, key, _sizes)


def _in_pieces(dataset: Any, column: str | None, read: Any) -> LengthArray | None:
    table = dataset.select_columns([column]).with_format("arrow")
    pieces = []
    for start in range(0, len(table), _ROWS_AT_ONCE):
        values = table[start : start + _ROWS_AT_ONCE].column(column).combine_chunks()
        read_values = read(values)
        if read_values is None:
            return None
        pieces.append(as_lengths(read_values))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


def _sizes(values: Any) -> Any:
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        return compute.list_value_length(values).to_numpy(zero_copy_only=False)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return compute.utf8_length(values).to_numpy(zero_copy_only=False)
    return None


# ---- any dataset ----


def _sample_by_sample(dataset: Any, column: str | None, key: str, quiet: bool) -> LengthArray:
    if not len(dataset):
        return np.zeros(0, np.int64)
    first = dataset[0]
    if isinstance(first, Mapping) and column in first:
        return as_lengths([int(sample[column]) for sample in _each(dataset, quiet)])
    if not isinstance(first, Mapping) or key not in first:
        says = f"the column {column!r} or " if column else ""
        raise ValueError(
            f"the lengths of {type(dataset).__name__} cannot be measured: its samples are no mappings with {says}the key "
            f"{key!r}; name a column of lengths by length_column_name, or pass the lengths or the key to the sampler"
        )
    return as_lengths([len(sample[key]) for sample in _each(dataset, quiet)])


def _each(dataset: Sequence[Any], quiet: bool) -> Iterable[Any]:
    indices = tqdm(
        range(len(dataset)), desc="Measuring lengths", unit=" samples", disable=quiet, leave=False, delay=1.0
    )
    return (dataset[index] for index in indices)
