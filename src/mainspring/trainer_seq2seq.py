"""Door: what scripts import from ``trainer_seq2seq``. Nothing is here yet."""

from __future__ import annotations

__all__: list[str] = []
