"""Rows that hold several samples, for causal language models: `pack_sequences`.

A batch has `per_device_train_batch_size` rows of at most `pack_length` tokens each, which is by default the length of the
longest sample: a batch that fits in memory padded fits packed. Samples are never cut.

- `order`: which samples share a row, drawn anew each epoch.
- `columns`: the tokens of a batch's samples, one after another and without padding.
- `layouts`: how rows are laid out, and how a model is told where a sample begins.
- `batches`: the collator, which puts these together.
- `isolation`: whether a model keeps the samples of a row apart.
"""

from __future__ import annotations

from mainspring.data.packing.batches import PackedBatch, Packing, PackingCollator
from mainspring.data.packing.columns import TOKENS, column_collator, tried_samples
from mainspring.data.packing.isolation import check_isolation
from mainspring.data.packing.layouts import layout_for
from mainspring.data.packing.order import PackedOrder, PackedSamples

__all__ = [
    "TOKENS",
    "PackedBatch",
    "PackedOrder",
    "PackedSamples",
    "Packing",
    "PackingCollator",
    "check_isolation",
    "column_collator",
    "layout_for",
    "tried_samples",
]
