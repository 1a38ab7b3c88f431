"""Door: what scripts import from ``training_args_seq2seq``."""

from __future__ import annotations

from mainspring.arguments import Seq2SeqTrainingArguments

__all__ = [
    "Seq2SeqTrainingArguments",
]
