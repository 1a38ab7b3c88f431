"""Door: what scripts import from ``trainer_seq2seq``. Nothing is here yet."""

from __future__ import annotations

from mainspring.absent import not_available_yet

__all__: list[str] = []

__getattr__ = not_available_yet(
    __name__,
    "Seq2SeqTrainer",
)
