"""Samples that are several texts each, of which one is to be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mainspring.data.collators.base import Batch, DataCollatorMixin, mappings
from mainspring.data.collators.padding import in_framework, padded
from mainspring.data.columns import LABEL_COLUMNS


@dataclass
class DataCollatorForMultipleChoice(DataCollatorMixin):
    """Pad all choices of all samples to one length.

    Every entry of a sample is a list with one element per choice, but for ``labels``, ``label`` or ``label_ids``: the
    number of the right one, which comes out as ``labels``. There may be none.

    Args:
        tokenizer: Anything with a ``pad`` method of a tokenizer's signature.
        padding: True or ``"longest"``: to the longest of the batch; ``"max_length"``: to ``max_length``; False: not.
        max_length: In tokens; the model's by default.
        pad_to_multiple_of: Round the length up to a multiple.
        return_tensors: ``"pt"`` for torch tensors, ``"np"`` for NumPy arrays; of shape (samples, choices, tokens).
    """

    tokenizer: Any
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, features: list[Any]) -> Batch:
        """A batch of torch tensors."""
        return self._batch(features, "pt")

    def numpy_call(self, features: list[Any]) -> Batch:
        """A batch of NumPy arrays."""
        return self._batch(features, "np")

    def _batch(self, features: list[Any], framework: str) -> Batch:
        name = type(self).__name__
        samples = mappings(features, name, "input_ids")
        label_key = next((key for key in ("labels", *LABEL_COLUMNS) if key in samples[0]), None)
        choices = _choices(samples, label_key, name)
        flat = padded(
            self.tokenizer,
            choices,
            framework,
            padding=self.padding,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        shape = len(samples), len(choices) // len(samples)
        batch = {key: values.reshape(*shape, *values.shape[1:]) for key, values in flat.items()}
        if label_key is not None:
            labels = np.array([int(sample[label_key]) for sample in samples], dtype=np.int64)
            batch["labels"] = in_framework(labels, framework)
        return batch


def _choices(samples: Sequence[Mapping[str, Any]], label_key: str | None, collator: str) -> list[dict[str, Any]]:
    """The choices of the first sample, of the second one, ..."""
    count = len(samples[0]["input_ids"])
    keys = [key for key in samples[0] if key != label_key]
    for number, sample in enumerate(samples):
        for key in keys:
            found = len(sample[key]) if hasattr(sample[key], "__len__") else "no"
            if found != count:
                raise ValueError(
                    f"{collator}: {key!r} of sample {number} of the batch has {found} choices, but 'input_ids' of "
                    f"sample 0 has {count}"
                )
    return [{key: sample[key][choice] for key in keys} for sample in samples for choice in range(count)]
