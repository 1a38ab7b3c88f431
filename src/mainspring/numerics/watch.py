"""What a run knows of its numbers: counts for every log and, where that is asked for, a decision on each update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from mainspring.numerics.counts import Counted, UpdateCounts
from mainspring.numerics.guard import Guard, Together
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

_SUMMED = ("nonfinite_steps", "overflow_steps", "skipped_steps")
"""What the logs of a run add up to."""


def _nothing(*_: Any) -> None:
    """Nobody counts."""


class Numerics:
    """Goes along with a run.

    Args:
        counts: Counts updates by their numbers.
        guard: Decides on them; None: all are made.
        logs: Whether the counts are logged.
        clips: Whether gradients are clipped.
        skips: Whether updates may be left out.
        tells: Whether this process warns of the first that were made although they went wrong.

    Attributes:
        add: Takes a micro-batch's loss: `UpdateCounts.add`.
        end: Takes an update's gradient norm: `UpdateCounts.end`.
    """

    def __init__(
        self, counts: UpdateCounts, guard: Guard | None, *, logs: bool, clips: bool, skips: bool, tells: bool = False
    ) -> None:
        self.counts = counts
        self.guard = guard
        self._logs = logs
        self._clips = clips
        self._skips = skips
        self._tells = tells
        self._active = logs or guard is not None
        # The counters themselves, as every update calls them.
        self.add: Callable[[Tensor], None] = counts.add if self._active else _nothing
        self.end: Callable[[Any, bool], None] = counts.end if self._active else _nothing

    @property
    def lost(self) -> int:
        """Updates of the plan that were not made."""
        return 0 if self.guard is None else self.guard.decider.lost

    @property
    def rolls_back(self) -> bool:
        """Whether training may go back."""
        return self.guard is not None and self.guard.snapshots is not None

    def snapshots(self) -> list[dict[str, Any]]:
        """The places to go back to, for a checkpoint."""
        return [] if self.guard is None or self.guard.snapshots is None else self.guard.snapshots.state()

    def begin(self, step: int) -> None:
        """The first micro-batch of the update after update `step` comes next."""
        self.counts.begin()
        if self.guard is not None:
            self.guard.begin(step)

    def drain(self, engine: Together) -> dict[str, float]:
        """What a log says of the updates since the last one; counting begins anew."""
        if not self._logs:
            self.counts.restart()
            return {}
        counted = self.counts.read(engine.sum)
        self.counts.restart()
        self._tell(counted)
        return counted.logs(self._clips, engine.scales_loss, self._skips)

    def summary(self, engine: Together, history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """What the last log says of all updates of the run, also of those since the log before it.

        Args:
            engine: Sums over the processes.
            history: What was logged.
        """
        since, earlier = self.drain(engine), list(history)
        return {key: since[key] + sum(log.get(key, 0) for log in earlier) for key in _SUMMED if key in since}

    def _tell(self, counted: Counted) -> None:
        """Say once that updates went wrong and were made: the logged loss may look as if nothing had happened."""
        if counted.nonfinite and self.guard is None and self._tells:
            self._tells = False
            logger.warning(
                "of the last %d updates, %d had a NaN or infinite loss or gradient norm, and were made all the same; "
                "on_nonfinite='skip' leaves such updates out, and on_nonfinite='raise' ends the run at the first one, and "
                "says what caused it",
                counted.updates,
                counted.nonfinite,
            )

    def state(self, engine: Together) -> dict[str, Any]:
        """What a checkpoint holds of it, as plain values; empty where nothing is counted. All processes ask together."""
        if not self._active:
            return {}
        state: dict[str, Any] = {"window": list(self.counts.read(engine.sum))}
        return state if self.guard is None else {**state, "guard": self.guard.decider.state()}

    def load_window(self, state: Mapping[str, Any]) -> None:
        """Go on with the counts since the last log."""
        if "window" in state and self._active:
            self.counts.restart(Counted(*state["window"]))

    def load_decisions(self, state: Mapping[str, Any], snapshots: list[dict[str, Any]] | None) -> None:
        """Go on with what was decided before, and with the places to go back to."""
        if self.guard is None:
            return
        if "guard" in state:
            self.guard.decider.load_state(state["guard"])
        if self.guard.snapshots is not None and snapshots is not None:
            self.guard.snapshots.load_state(snapshots)
