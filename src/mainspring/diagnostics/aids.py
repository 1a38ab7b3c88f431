"""The option `debug`: which of its aids a run gets, and when they act."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mainspring.arguments.enums import DebugOption
from mainspring.diagnostics.overflow import DebugUnderflowOverflow
from mainspring.errors import OptionError, Problem

if TYPE_CHECKING:
    from torch import nn

    from mainspring.engines.base import SingleProcess


class DebuggingAids:
    """What `debug` asks for.

    Args:
        debug: The option.
        engine: The run's.

    Raises:
        OptionError: The engine cannot serve it.
    """

    def __init__(self, debug: str | Sequence[str], engine: SingleProcess) -> None:
        words = DebugOption.words(debug)
        self._engine = engine
        self._watches = DebugOption.UNDERFLOW_OVERFLOW in words
        self._counts = DebugOption.TPU_METRICS_DEBUG in words
        if self._watches and (why := engine.why_not_watched()) is not None:
            raise _refusal(DebugOption.UNDERFLOW_OVERFLOW, why)
        if self._counts and engine.compiler_metrics() is None:
            raise _refusal(DebugOption.TPU_METRICS_DEBUG, f"the engine {engine.kind!r} does not run on an XLA device")

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """The body is the training; the model goes out of it without hooks, however it ends.

        Gradients are left out where they are scaled: the scale is found by letting them overflow.
        """
        if not self._watches:
            yield
            return
        watch = DebugUnderflowOverflow(model, gradients=not self._engine.scales_loss)
        try:
            yield
        finally:
            watch.remove()

    def after_epoch(self) -> None:
        """Print what the device's compiler has counted, once for all processes."""
        if self._counts and self._engine.rank == 0:
            sys.stdout.write(f"{self._engine.compiler_metrics()}\n")


def _refusal(word: DebugOption, why: str) -> OptionError:
    return OptionError([Problem("debug", str(word), why, "leave it out of the option")])
