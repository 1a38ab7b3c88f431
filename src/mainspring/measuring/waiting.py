"""What to do about a run that waits for its data."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.measuring.window import Stretch

_TOO_MUCH = 0.2
"""The share of time beyond which waiting is worth a word."""

_UPDATES, _SECONDS = 10, 1.0
"""What a share is measured over before anything is made of it: the first batches of a run are slow."""


@dataclass(frozen=True)
class Loading:
    """How batches are loaded.

    Attributes:
        workers: Processes that load them.
        prefetch: Batches that each of them loads ahead; None for torch's default.
        pins: Whether they lie in memory that a GPU can copy from; None where there is none to copy to.
    """

    workers: int
    prefetch: int | None = None
    pins: bool | None = None

    def advice(self) -> str:
        """What could make it faster."""
        if self.workers == 0:
            first = "set dataloader_num_workers to load ahead in processes of their own (it is 0)"
        else:
            ahead = 2 if self.prefetch is None else self.prefetch
            first = (
                f"raise dataloader_num_workers (it is {self.workers}) or dataloader_prefetch_factor (it is {ahead}), or "
                "do less work for each sample while training"
            )
        return first if self.pins is not False else f"{first}; set dataloader_pin_memory=True"


class WaitingAdvice:
    """Says once in a run that it waits too much, when it has for a while.

    Args:
        loading: How its batches are loaded.
    """

    def __init__(self, loading: Loading) -> None:
        self._loading = loading
        self._said = False
        self._forget()

    def _forget(self) -> None:
        self._seconds, self._waited, self._updates = 0.0, 0.0, 0

    def heed(self, stretch: Stretch, waiting: float) -> str | None:
        """The advice, where it is time for it.

        Args:
            stretch: Training since the last log.
            waiting: The share of it in which the process that waited longest did.
        """
        self._seconds += stretch.seconds
        self._waited += stretch.seconds * waiting
        self._updates += stretch.updates
        if self._said or self._updates < _UPDATES or self._seconds < _SECONDS:
            return None
        share, updates = self._waited / self._seconds, self._updates
        self._forget()
        if share <= _TOO_MUCH:
            return None
        self._said = True
        return (
            f"training waited for its data in {share:.0%} of the last {updates} updates' time: {self._loading.advice()}"
        )
