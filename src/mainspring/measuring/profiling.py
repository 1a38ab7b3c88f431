"""Some updates of a run under torch's profiler, written to files."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import torch

_ROWS = 50
"""Operations in the table."""


@dataclass(frozen=True)
class Updates:
    """A range of updates, as of a Python slice: those made when `start` to `stop - 1` are done.

    Attributes:
        start: Updates before it.
        stop: Updates before what comes after it.
    """

    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start}-{self.stop}"


class Profile:
    """A profile that is being recorded: of this process's CPU, and of its GPU where it has one.

    Every update has a mark of its own in it.
    """

    def __init__(self) -> None:
        self._profiler = torch.profiler.profile(record_shapes=True)
        self._profiler.start()
        self._mark: Any = contextlib.nullcontext()

    def begin_update(self, number: int) -> None:
        """The next update begins; what is recorded up to `end_update` is under its number."""
        self.end_update()  # one that was left out has no end
        self._mark = torch.profiler.record_function(f"update {number}")
        self._mark.__enter__()

    def end_update(self) -> None:
        """The update is done."""
        mark, self._mark = self._mark, contextlib.nullcontext()
        mark.__exit__(None, None, None)

    def stop(self) -> None:
        """Stop recording."""
        self.end_update()
        self._profiler.stop()

    def write(self, folder: str, name: str) -> list[str]:
        """Write the trace and the table of operations that took longest; returns their paths.

        Args:
            folder: Where; made if it is missing.
            name: What their names end in.
        """
        os.makedirs(folder, exist_ok=True)
        trace = os.path.join(folder, f"trace_{name}.json.gz")
        self._profiler.export_chrome_trace(trace)
        table = os.path.join(folder, f"operations_{name}.txt")
        with open(table, "w", encoding="utf-8") as file:
            file.write(self._profiler.key_averages().table(sort_by=self._order(), row_limit=_ROWS))
        return [trace, table]

    def _order(self) -> str:
        devices = self._profiler.profiler
        on_device = devices is not None and devices.use_device is not None
        return "self_device_time_total" if on_device else "self_cpu_time_total"
