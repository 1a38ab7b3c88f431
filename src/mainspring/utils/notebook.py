"""Door: what scripts import from ``utils.notebook``. Nothing is here yet: in notebooks, progress is drawn by ``tqdm``."""

from __future__ import annotations

__all__: list[str] = []
