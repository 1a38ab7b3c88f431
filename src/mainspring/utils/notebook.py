"""Door: what scripts import from ``utils.notebook``. Nothing is here yet: in notebooks, progress is drawn by ``tqdm``."""

from __future__ import annotations

from mainspring.absent import not_available_yet

__all__: list[str] = []

__getattr__ = not_available_yet(
    __name__,
    "NotebookProgressBar",
    "NotebookProgressCallback",
    "NotebookTrainingTracker",
)
