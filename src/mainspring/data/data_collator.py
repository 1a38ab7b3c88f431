"""Door: what scripts import from ``data.data_collator``."""

from __future__ import annotations

from mainspring.absent import LATER_COLLATORS, not_available_yet
from mainspring.data.collators import (
    DataCollator,
    DataCollatorMixin,
    DataCollatorWithPadding,
    DefaultDataCollator,
    default_data_collator,
)

__all__ = [
    "DataCollator",
    "DataCollatorMixin",
    "DataCollatorWithPadding",
    "DefaultDataCollator",
    "default_data_collator",
]

__getattr__ = not_available_yet(
    __name__,
    *LATER_COLLATORS,
    "numpy_default_data_collator",
    "pad_without_fast_tokenizer_warning",
    "to_numpy",
    "torch_default_data_collator",
)
