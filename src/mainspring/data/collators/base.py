"""What every collator is, and what it says of samples that it cannot use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
        raise unknown_framework(framework)

    def torch_call(self, features: list[Any]) -> Any:
        """A batch of torch tensors."""
        raise NotImplementedError(f"{type(self).__name__} cannot return torch tensors")

    def numpy_call(self, features: list[Any]) -> Any:
        """A batch of NumPy arrays."""
        raise NotImplementedError(f"{type(self).__name__} cannot return NumPy arrays")


def unknown_framework(name: object) -> ValueError:
    """The error for a ``return_tensors`` that is none of ours."""
    return ValueError(f"return_tensors={name!r} is not known: use 'pt' (torch) or 'np' (NumPy)")


def not_empty(features: Sequence[Any], collator: str) -> Sequence[Any]:
    """The samples, of which there must be some.

    Raises:
        ValueError: If there are none.
    """
    if not len(features):
        raise ValueError(f"{collator} cannot make a batch of no samples: the sampler or the dataset gave an empty list")
    return features


def mappings(features: Sequence[Any], collator: str, *needed: str) -> Sequence[Mapping[str, Any]]:
    """The samples, each of which must be a mapping with the entries of the first one.

    Args:
        features: The samples.
        collator: Its name, for the message.
        needed: Entries that the samples must have.

    Raises:
        ValueError: If there are no samples, or one lacks an entry.
        TypeError: If one is not a mapping.
    """
    for number, feature in enumerate(not_empty(features, collator)):
        if not isinstance(feature, Mapping):
            raise TypeError(
                f"{collator} takes samples that are mappings, such as dicts; sample {number} of the batch is "
                f"{type(feature).__name__}"
            )
        lacking = next((key for key in (*needed, *features[0]) if key not in feature), None)
        if lacking is not None:
            has = ", ".join(map(repr, feature)) or "nothing"
            raise ValueError(f"{collator}: sample {number} of the batch has no {lacking!r}, only {has}")
    return features
