"""Samples laid end to end in one row, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from mainspring.data.collators.base import Batch, mappings, unknown_framework
from mainspring.data.collators.default import DefaultDataCollator
from mainspring.data.collators.padding import Integers, in_framework

Samples = Sequence[Mapping[str, Any]]


@dataclass
class DataCollatorWithFlattening(DefaultDataCollator):
    """Lay the samples of a batch end to end in one row of shape (1, tokens).

    For causal language models whose attention keeps to one sample where the positions start again, or where the
    boundaries are given. ``labels`` are the samples', or else their ``input_ids``. Other entries are left out.

    Args:
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays.
        return_position_ids: Add ``position_ids``, which start again with each sample.
        separator_id: The label of each sample's first token, which must not be predicted from the sample before.
        return_flash_attn_kwargs: Add what attention over rows of different lengths takes: ``cu_seq_lens_q`` and
            ``cu_seq_lens_k`` (where samples begin, and the end; 32 bits), ``max_length_q`` and ``max_length_k``.
        return_seq_idx: Add ``seq_idx``, the number of the sample each token belongs to (32 bits).
        position_ids_start: The first position of each sample.
    """

    _: KW_ONLY
    return_position_ids: bool = True
    separator_id: int = -100
    return_flash_attn_kwargs: bool = False
    return_seq_idx: bool = False
    position_ids_start: int = 0

    def __call__(
        self, features: list[Any], return_tensors: str | None = None, separator_id: int | None = None
    ) -> Batch:
        """Make a batch; ``return_tensors`` and ``separator_id`` override the attributes.

        Raises:
            ValueError: If a sample has no ``input_ids``, or not as many labels; if some samples have labels only.
        """
        framework = self.return_tensors if return_tensors is None else return_tensors
        if framework not in ("pt", "np"):
            raise unknown_framework(framework)
        samples = mappings(features, type(self).__name__, "input_ids")
        rows = self._rows(samples, self.separator_id if separator_id is None else separator_id)
        batch: Batch = {name: in_framework(row, framework) for name, row in rows.items()}
        if self.return_flash_attn_kwargs:
            longest = max(len(sample["input_ids"]) for sample in samples)
            batch |= {"max_length_q": longest, "max_length_k": longest}
        return batch

    def _rows(self, samples: Samples, separator_id: int) -> dict[str, np.ndarray[Any, Any]]:
        ids = [np.asarray(sample["input_ids"]) for sample in samples]
        lengths = np.array([len(row) for row in ids])
        ends = lengths.cumsum()
        starts = ends - lengths
        labels = self._labels(samples, ids)
        labels[starts[lengths > 0]] = separator_id
        rows: dict[str, np.ndarray[Any, Any]] = {"input_ids": _row(ids)[None], "labels": labels[None]}
        if self.return_position_ids:
            rows["position_ids"] = (np.arange(ends[-1]) - starts.repeat(lengths) + self.position_ids_start)[None]
        if self.return_seq_idx:
            rows["seq_idx"] = np.arange(len(ids), dtype=np.int32).repeat(lengths)[None]
        if self.return_flash_attn_kwargs:
            boundaries = np.concatenate(([0], ends)).astype(np.int32)
            rows |= {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries.copy()}
        return rows

    def _labels(self, samples: Samples, ids: list[np.ndarray[Any, Any]]) -> Integers:
        labelled = [sample.get("labels") is not None for sample in samples]
        if not any(labelled):
            return _row(ids)
        name = type(self).__name__
        if not all(labelled):
            raise ValueError(f"{name}: sample {labelled.index(False)} of the batch has no 'labels', which others have")
        labels = [np.asarray(sample["labels"]) for sample in samples]
        for number, (tokens, row) in enumerate(zip(ids, labels, strict=True)):
            if len(tokens) != len(row):
                raise ValueError(
                    f"{name}: sample {number} of the batch has {len(row)} labels for {len(tokens)} tokens; give each "
                    "token one"
                )
        return _row(labels)


def _row(parts: list[np.ndarray[Any, Any]]) -> Integers:
    """All numbers in one new row."""
    return np.concatenate(parts).astype(np.int64, copy=False)
