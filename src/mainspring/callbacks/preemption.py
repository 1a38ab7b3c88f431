"""Ctrl-C during training, held back until the update is finished and can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from mainspring.utils.logging import get_logger

logger = get_logger(__name__)


class Interruption:
    """A request to stop, set by SIGINT and for the loop to honour at the end of an update.

    Attributes:
        enabled: Whether a first SIGINT is held back at all: only where a checkpoint can be written, by one process.
        requested: Whether one has arrived.
    """

    def __init__(self, enabled: bool = False) -> None:
        self.enabled = enabled
        self.requested = False

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Hold back the first SIGINT inside the context; a second one interrupts at once."""
        if not self.enabled or threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning(
            "interrupted: stopping with a checkpoint after this update or evaluation (Ctrl-C again stops at once)"
        )
