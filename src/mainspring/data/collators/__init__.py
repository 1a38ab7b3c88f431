"""Making a batch of a list of samples. Samples are read, never changed.

| what becomes of samples | where |
|---|---|
| stacked as they are | `default` |
| padded by a tokenizer | `padding`; with labels of their own `labelled`; several texts each `multiple_choice` |
| laid end to end | `flattening` |
| turned into what is to be predicted | `language_modeling`, `permutation`, `older`; helped by `tokens`, `draws` |
| reduced to what the model takes | `removal` |
"""

from mainspring.data.collators.base import Batch, DataCollator, DataCollatorMixin
from mainspring.data.collators.default import (
    DefaultDataCollator,
    default_data_collator,
    numpy_default_data_collator,
    torch_default_data_collator,
)
from mainspring.data.collators.flattening import DataCollatorWithFlattening
from mainspring.data.collators.labelled import DataCollatorForSeq2Seq, DataCollatorForTokenClassification
from mainspring.data.collators.language_modeling import DataCollatorForLanguageModeling
from mainspring.data.collators.multiple_choice import DataCollatorForMultipleChoice
from mainspring.data.collators.older import DataCollatorForSOP, DataCollatorForWholeWordMask
from mainspring.data.collators.padding import DataCollatorWithPadding, pad_without_fast_tokenizer_warning
from mainspring.data.collators.permutation import DataCollatorForPermutationLanguageModeling
from mainspring.data.collators.removal import RemoveColumnsCollator

__all__ = [
    "Batch",
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
    "RemoveColumnsCollator",
    "default_data_collator",
    "numpy_default_data_collator",
    "pad_without_fast_tokenizer_warning",
    "torch_default_data_collator",
]
