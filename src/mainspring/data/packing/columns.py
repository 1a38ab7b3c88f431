"""The tokens of a batch's samples, one after another: what is laid out in rows afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mainspring.data.collators import DataCollatorWithPadding, DefaultDataCollator, default_data_collator
from mainspring.data.columns import LABEL_COLUMNS
from mainspring.data.lengths import Lengths
from mainspring.errors import OptionError, Problem
from mainspring.loss import IGNORE_INDEX

TOKENS = "input_ids"
MASK = "attention_mask"
POSITIONS = "position_ids"


@dataclass(frozen=True)
class Columns:
    """Samples one after another, without padding.

    Attributes:
        values: By name, a 1-d tensor of one value per token. `labels` are there, and the first of each sample is -100:
            it would be predicted from the sample before.
        lengths: Tokens of each sample.
    """

    values: dict[str, Tensor]
    lengths: list[int]

    def __post_init__(self) -> None:
        if POSITIONS in self.values:
            raise ValueError(
                f"the samples bring {POSITIONS!r}, which pack_sequences numbers itself: leave the column out"
            )
        labels = self.values.get("labels", self.values[TOKENS]).clone()
        starts = np.cumsum([0, *self.lengths])[:-1][np.asarray(self.lengths) > 0]
        labels[torch.from_numpy(starts)] = IGNORE_INDEX
        self.values["labels"] = labels


ColumnCollator = Callable[[list[Any]], Columns]


def column_collator(data_collator: Callable[[list[Any]], Any]) -> ColumnCollator:
    """What reads the samples of packed rows, in place of a `data_collator`.

    A collator that would stack or pad alone, or flatten, is not needed: the samples are taken as they are. What any other
    makes of them, labels above all, is kept, and its padding taken out again.
    """
    if data_collator is default_data_collator or type(data_collator) in (DefaultDataCollator, DataCollatorWithPadding):
        return concatenated
    # By its name: transformers' own class is meant too, and is not to be imported for it. What either makes is one row
    # without a mask, from which the samples could not be told again.
    if any(base.__name__ == "DataCollatorWithFlattening" for base in type(data_collator).__mro__):
        return concatenated
    return _Unpadded(data_collator)


def concatenated(samples: list[Any]) -> Columns:
    """The columns of samples that are mappings, each column with one value per token."""
    first = samples[0]
    if not isinstance(first, Mapping) or TOKENS not in first:
        raise ValueError(f"pack_sequences needs samples that are mappings with {TOKENS!r}, not {_described(first)}")
    values = {_renamed(name): _joined(samples, name) for name in first if first[name] is not None}
    lengths = [len(sample[TOKENS]) for sample in samples]
    for name, column in values.items():
        if len(column) != sum(lengths):
            raise _not_per_token(name)
    if (mask := values.pop(MASK, None)) is None or bool(mask.all()):
        return Columns(values, lengths)
    kept = mask != 0
    lengths = [int(part.sum()) for part in torch.split(kept, lengths)]
    return Columns({name: column[kept] for name, column in values.items()}, lengths)


def _renamed(name: str) -> str:
    return "labels" if name in LABEL_COLUMNS else name


def _joined(samples: Sequence[Any], name: str) -> Tensor:
    try:
        parts = [sample[name] for sample in samples]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return torch.from_numpy(np.concatenate([part for part in parts if len(part)] or [np.zeros(0, dtype=np.int64)]))
    except KeyError:
        raise ValueError(f"not all samples have {name!r}") from None
    except (TypeError, ValueError, RuntimeError):  # what numbers, text and nested lists end in
        raise _not_per_token(name) from None


def _not_per_token(name: str) -> ValueError:
    return ValueError(
        f"{name!r} does not have one value per token, as pack_sequences needs it: leave the column out, or train without "
        "pack_sequences"
    )


def _described(sample: object) -> str:
    return f"one with {', '.join(map(str, sample))}" if isinstance(sample, Mapping) else type(sample).__name__


def tried_samples(lengths: Lengths) -> list[Any]:
    """The tokens of a few samples, which show that they are what their lengths say.

    Raises:
        OptionError: If a column holds other lengths, such as those of texts in letters.
    """
    found = []
    for index in sorted({0, len(lengths.dataset) - 1}):
        sample = lengths.dataset[index]
        if not isinstance(sample, Mapping) or TOKENS not in sample:
            raise ValueError(
                f"pack_sequences needs samples that are mappings with {TOKENS!r}, not {_described(sample)}"
            )
        tokens, told = len(sample[TOKENS]), int(lengths.of(0)[index])
        if lengths.column in sample and tokens != told:
            why = f"it holds {told} for sample {index}, which has {tokens} tokens, and packed rows are planned by it"
            raise OptionError(
                [Problem("length_column_name", lengths.column, why, "name a column of numbers of tokens")]
            )
        found.append(sample[TOKENS])
    return found


class _Unpadded:
    """What a user's collator makes of the samples, without the padding that it adds."""

    def __init__(self, data_collator: Callable[[list[Any]], Any]) -> None:
        self.data_collator = data_collator

    def __call__(self, samples: list[Any]) -> Columns:
        batch = {name: torch.as_tensor(value) for name, value in self.data_collator(samples).items()}
        mask = batch.pop(MASK, None)
        if mask is None or TOKENS not in batch or mask.shape != batch[TOKENS].shape or len(mask) != len(samples):
            raise ValueError(
                f"data_collator returns no {TOKENS!r} and {MASK!r} of one row per sample: pack_sequences needs them to tell "
                "tokens from padding; return them, or leave data_collator out"
            )
        for name, value in batch.items():
            if value.shape != mask.shape:
                raise _not_per_token(name)
        kept = mask != 0
        return Columns({name: value[kept] for name, value in batch.items()}, kept.sum(dim=1).tolist())
