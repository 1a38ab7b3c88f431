"""What logs tell of the time since the last one: the share spent waiting for data, and the use made of the devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mainspring.measuring.waiting import Loading, WaitingAdvice
from mainspring.measuring.window import Pace, Stretch
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

Each = Callable[[Sequence[int]], list[list[int]]]
"""Exchanges a few whole numbers between the processes."""

_UNIT = 1_000_000
"""Shares travel between processes as whole numbers of millionths."""


@dataclass(frozen=True)
class Peak:
    """What the devices of a run can do.

    Attributes:
        of_all: Floating-point operations per second of all of them together.
        was_given: Whether the user said so.
    """

    of_all: float
    was_given: bool = False


class Speed:
    """Takes the time of training, and says at each log where it went.

    Args:
        operations: Floating-point operations counted before.
        loading: How batches are loaded; None: nothing is told of waiting for them.
        peak: What the devices can do; None: nothing is told of how much of it is used.
    """

    def __init__(self, operations: float = 0.0, loading: Loading | None = None, peak: Peak | None = None) -> None:
        self._pace = Pace(operations)
        self._advice = None if loading is None else WaitingAdvice(loading)
        self._peak = peak

    def waited_since(self, moment: float) -> None:
        """The data of an update, asked for at `moment` of `time.perf_counter`, is there."""
        self._pace.waited_since(moment)

    def apart(self) -> contextlib.AbstractContextManager[None]:
        """Something that is not training: its time does not count."""
        return self._pace.apart()

    def logs(self, operations: float, each: Each) -> dict[str, float]:
        """`data_wait_fraction` and `mfu` since the last log, as far as they are known. All processes ask together.

        Args:
            operations: All floating-point operations counted by now, over all processes.
            each: Tells every process's numbers.
        """
        stretch = self._pace.take(operations)
        return {**self._waiting(stretch, each), **self._utilization(stretch)}

    def _waiting(self, stretch: Stretch, each: Each) -> dict[str, float]:
        """The share of the process that waited longest: the others wait for it."""
        if self._advice is None:
            return {}
        own = stretch.waiting
        most = max(share for (share,) in each([-1 if own is None else round(own * _UNIT)])) / _UNIT
        if most < 0:
            return {}
        if (advice := self._advice.heed(stretch, most)) is not None:
            logger.warning("%s", advice)
        return {"data_wait_fraction": most}

    def _utilization(self, stretch: Stretch) -> dict[str, float]:
        used = None if self._peak is None else stretch.utilization(self._peak.of_all)
        if used is not None:
            return {"mfu": used}
        if self._peak is not None and self._peak.was_given:
            logger.warning_once(
                "peak_flops has no effect: the model's operations are not counted; give it num_parameters(), or "
                "floating_point_ops(inputs)"
            )
        return {}
