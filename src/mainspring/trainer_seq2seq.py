"""Door: what scripts import from ``trainer_seq2seq``."""

from __future__ import annotations

from mainspring.seq2seq import Seq2SeqTrainer

__all__ = [
    "Seq2SeqTrainer",
]
