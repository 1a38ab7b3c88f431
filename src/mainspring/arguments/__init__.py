"""Options: declared once, read, validated together. Nothing here imports torch before a device is asked for."""

from __future__ import annotations

from mainspring.arguments.seq2seq_arguments import Seq2SeqTrainingArguments
from mainspring.arguments.training_arguments import TrainingArguments

__all__ = ["Seq2SeqTrainingArguments", "TrainingArguments"]
