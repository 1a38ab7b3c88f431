"""Door: what scripts import from ``data.data_collator``."""

from __future__ import annotations

from mainspring.data.collators import (
    DataCollatorMixin,
    DataCollatorWithPadding,
    DefaultDataCollator,
    default_data_collator,
)

__all__ = [
    "DataCollatorMixin",
    "DataCollatorWithPadding",
    "DefaultDataCollator",
    "default_data_collator",
]
