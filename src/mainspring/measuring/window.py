"""Where the time between two logs went: how much of it training waited for data, and what it computed in the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Stretch:
    """Training between two logs, evaluations and saves left out.

    Attributes:
        seconds: How long it took.
        waited: How many of these seconds this process waited for data; None where nobody measured it.
        updates: For how many updates data was waited for.
        operations: Floating-point operations counted over all processes.
    """

    seconds: float
    waited: float | None
    updates: int
    operations: float

    @property
    def waiting(self) -> float | None:
        """The share of time in which this process waited for data."""
        if self.waited is None or self.seconds <= 0:
            return None
        return min(1.0, self.waited / self.seconds)

    def utilization(self, peak: float) -> float | None:
        """The share of what the devices could have computed; None where no operation was counted.

        Args:
            peak: Floating-point operations per second of all devices together.
        """
        return self.operations / (self.seconds * peak) if self.operations > 0 and self.seconds > 0 else None


class Pace:
    """Takes the time of training, from one log to the next. Costs a clock reading or two an update."""

    __slots__ = ("_apart", "_begun", "_operations", "_updates", "_waited")

    def __init__(self, operations: float = 0.0) -> None:
        self._begin(operations)

    def _begin(self, operations: float) -> None:
        self._begun = perf_counter()
        self._apart = 0.0
        self._waited = 0.0
        self._updates = 0
        self._operations = operations

    def waited_since(self, moment: float) -> None:
        """The data of an update, asked for at `moment` of `time.perf_counter`, is there."""
        self._waited += perf_counter() - moment
        self._updates += 1

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Something that is not training: its time does not count."""
        begun = perf_counter()
        try:
            yield
        finally:
            self._apart += perf_counter() - begun

    def take(self, operations: float) -> Stretch:
        """The stretch that ends now; the next one begins.

        Args:
            operations: All operations counted since the run began.
        """
        stretch = Stretch(
            seconds=perf_counter() - self._begun - self._apart,
            waited=self._waited if self._updates else None,
            updates=self._updates,
            operations=operations - self._operations,
        )
        self._begin(operations)
        return stretch
