"""Door: what scripts import from ``data.data_collator``."""

from __future__ import annotations

from mainspring.absent import not_available_yet
from mainspring.data.collators import (
    DataCollator,
    DataCollatorForLanguageModeling,
    DataCollatorForMultipleChoice,
    DataCollatorForPermutationLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForSOP,
    DataCollatorForTokenClassification,
    DataCollatorForWholeWordMask,
    DataCollatorMixin,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    DefaultDataCollator,
    default_data_collator,
    numpy_default_data_collator,
    pad_without_fast_tokenizer_warning,
    torch_default_data_collator,
)

__all__ = [
    "DataCollator",
    "DataCollatorForLanguageModeling",
    "DataCollatorForMultipleChoice",
    "DataCollatorForPermutationLanguageModeling",
    "DataCollatorForSOP",
    "DataCollatorForSeq2Seq",
    "DataCollatorForTokenClassification",
    "DataCollatorForWholeWordMask",
    "DataCollatorMixin",
    "DataCollatorWithFlattening",
    "DataCollatorWithPadding",
    "DefaultDataCollator",
    "default_data_collator",
    "numpy_default_data_collator",
    "pad_without_fast_tokenizer_warning",
    "torch_default_data_collator",
]

__getattr__ = not_available_yet(__name__, "to_numpy")
