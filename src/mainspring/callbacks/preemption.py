"""Ctrl-C during training: finish the update, save, and stop, so that the same command goes on from there."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from mainspring.utils.logging import get_logger

if TYPE_CHECKING:
    from mainspring.loop import Run
    from mainspring.trainer import Trainer

logger = get_logger(__name__)


class Interruption:
    """A request to stop, set by SIGINT and honoured at the end of an update.

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
        logger.warning("interrupted: saving a checkpoint after this update (press Ctrl-C again to stop at once)")

    def honour(self, trainer: Trainer, run: Run) -> None:
        """Save where this step has no checkpoint yet, then raise `KeyboardInterrupt`."""
        folder: Any = trainer._save_now(run.model, run.trial)
        raise KeyboardInterrupt(
            f"interrupted at step {trainer.state.global_step} of {trainer.state.max_steps}; "
            f"{folder} continues it: train(resume_from_checkpoint=True)"
        )
