"""Requests to stop a run with a checkpoint: signals, and the wall clock.

A request is only noted when it arrives. The loop asks at the end of each update, and evaluations after each batch:
there the run can be saved and ended so that the same command continues it, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import FrameType

from mainspring.errors import Preempted
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

DEFAULT_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
"""Ctrl-C; what schedulers and `kill` send; what SLURM sends ahead of the end with `--signal=USR1@60`."""

_GRACE_S = 30
"""Seconds that a loader's worker outlives a SIGTERM, so that the training process can save first."""


class StopInsideEvaluation(BaseException):
    """Leaves an evaluation between two batches. Not an `Exception`: a metric's own error handling must not keep it."""


class StopRequests:
    """What asks this process to stop: the first of its signals, or the end of its time.

    Args:
        signals: Names of the signals to listen to; none: nothing is held back.
        seconds: Wall-clock time that the process may take from now on; None: no limit.
    """

    def __init__(self, signals: Collection[str] = (), seconds: float | None = None) -> None:
        self.reason: str | None = None
        self._signals = [getattr(signal, name) for name in signals if hasattr(signal, name)]
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._seconds = seconds
        self._owner = os.getpid()
        self._reserve = 0.0

    @property
    def active(self) -> bool:
        """Whether anything can ask at all."""
        return bool(self._signals) or self._deadline is not None

    @property
    def was_interrupted(self) -> bool:
        """Whether it was Ctrl-C that asked."""
        return self.reason == "SIGINT"

    def keep_back(self, seconds: float) -> None:
        """Stop so much earlier: what a save takes, by the slowest so far."""
        self._reserve = max(self._reserve, seconds)

    def wanted(self) -> bool:
        """Whether this process has been asked to stop. Cheap: the loop asks after every update."""
        if self.reason is None and self._deadline is not None and time.monotonic() + self._reserve >= self._deadline:
            self._note(f"max_time={self._seconds:g} s")
        return self.reason is not None

    def ending(self, message: str) -> BaseException:
        """What the run ends with: `KeyboardInterrupt` after Ctrl-C, else `Preempted`."""
        return KeyboardInterrupt(message) if self.was_interrupted else Preempted(message)

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Take note of the signals inside the context. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.getsignal(number) for number in self._signals}
        # What the user has switched off stays off, as Ctrl-C in a job of the background.
        heard = [number for number, handler in former.items() if handler not in (signal.SIG_IGN, None)]
        for number in heard:
            signal.signal(number, self._handler(former[number]))
        try:
            yield
        finally:
            for number in heard:
                signal.signal(number, former[number])

    def _handler(self, former: object) -> Callable[[int, FrameType | None], None]:
        """Note the request, and let a handler of the user's own have it too."""
        own = former if callable(former) and former is not signal.default_int_handler else None

        def receive(number: int, frame: FrameType | None) -> None:
            if os.getpid() != self._owner:  # a forked worker: its parent was asked, not it
                return
            if number == signal.SIGINT and self.was_interrupted:
                raise KeyboardInterrupt
            if self.reason is None:
                self._note(signal.Signals(number).name)
            if own is not None:
                own(number, frame)

        return receive

    def _note(self, reason: str) -> None:
        self.reason = reason
        again = " (Ctrl-C again stops at once)" if self.was_interrupted else ""
        logger.warning("%s: stopping with a checkpoint after this update or evaluation batch%s", reason, again)


def shield_worker(worker_id: int = 0) -> None:
    """Let a loader's worker outlive the signals that ask the training process to stop.

    Schedulers and terminals signal every process of a job. A worker that died at once would break the very update that
    the training process wants to finish. A worker ends by itself when its parent is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "SIGALRM"):
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE_S))
