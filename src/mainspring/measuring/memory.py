"""How much memory the stages of a run took: construction, training, evaluation, prediction.

Of each stage two numbers are told: by how much more is in use at its end than at its beginning, which may be negative,
and how much was in use in between beyond that end, which is not. Their sum above the beginning is the peak.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, MappingProxyType
from typing import Any, Literal

import torch

from mainspring.measuring.gauges import Gauge, gauges_of

Stage = Literal["init", "train", "eval", "test"]
"""What prefixes the keys of a report."""


@dataclass
class Taken:
    """What one gauge showed in one stage, in bytes.

    Attributes:
        begin: In use when it began.
        end: In use when it ended.
        peak: The most that was in use in between.
    """

    begin: int
    end: int = 0
    peak: int = 0

    @property
    def alloc(self) -> int:
        """What the stage has left in use, or given back."""
        return self.end - self.begin

    @property
    def peaked(self) -> int:
        """What was in use for a while, beyond what is at the end."""
        return max(0, self.peak - self.end)


class TrainerMemoryTracker:
    """Measures the memory of a run's stages, and adds it to their metrics.

    A report has `<stage>_mem_cpu_alloc_delta` and `<stage>_mem_cpu_peaked_delta` in bytes, the same with `gpu` where the
    device counts what is allocated on it. That of the first stage has `init` beside it, and `before_init_mem_cpu`. A
    stage within another one counts to that: nothing is told of it.

    Memory of the CPU is what the whole process has in RAM, sampled by a thread every millisecond: what is allocated and
    freed in less may be missed. That of the device is what torch's allocator counts; its highest mark is reset when a
    stage begins.

    Args:
        skip_memory_metrics: Measure nothing.
        device: Whose memory to look at beside the CPU's; the accelerator in use by default.

    Attributes:
        stages: The stage that a method of that name begins or ends.
        cur_stage: The stage under way.
        init_reported: Whether a report has told of the construction.

    Raises:
        NotAvailableError: psutil is not installed.
    """

    stages = MappingProxyType(
        {
            "__init__": "init",
            "train": "train",
            "_inner_training_loop": "train",
            "_finalize_training": "train",
            "evaluate": "eval",
            "predict": "test",
        }
    )

    def __init__(self, skip_memory_metrics: bool = False, device: torch.device | None = None) -> None:
        self.skip_memory_metrics = skip_memory_metrics
        self.cur_stage: str | None = None
        self.init_reported = False
        self._gauges: list[Gauge] = [] if skip_memory_metrics else gauges_of(device)
        self._taken: dict[str, dict[str, Taken]] = {}

    # ---- what the trainer calls ----

    def begin(self, stage: str) -> bool:
        """Begin a stage; returns whether it did, which is not so within another one."""
        if self.skip_memory_metrics or self.cur_stage is not None:
            return False
        self.cur_stage = stage
        self._give_back()
        self._taken[stage] = {gauge.name: Taken(gauge.used()) for gauge in self._gauges}
        for gauge in self._gauges:
            gauge.watch()
        return True

    def report(self, stage: str, metrics: dict[str, Any] | None = None) -> None:
        """End a stage, and add what it took to `metrics`; nothing happens where it is not the one under way."""
        if self.skip_memory_metrics or self.cur_stage != stage:
            return
        self.stop(stage)
        if metrics is not None:
            self.update_metrics(stage, metrics)

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[Callable[[dict[str, Any] | None], None]]:
        """A stage that ends at the latest with the block, by an exception too. Yields what reports it."""
        began = self.begin(stage)

        def report(metrics: dict[str, Any] | None) -> None:
            if began:
                self.report(stage, metrics)

        try:
            yield report
        finally:
            if began:
                self.report(stage)

    # ---- what overrides of the reference's generation call ----

    def start(self) -> None:
        """Begin the stage of the calling method. The same stage begins anew; within another one nothing happens."""
        if self.skip_memory_metrics:
            return
        stage = self.derive_stage()
        self.report(stage)
        self.begin(stage)

    def stop(self, stage: str) -> None:
        """End `stage`, if it is the one under way."""
        if self.skip_memory_metrics or self.cur_stage != stage:
            return
        self._give_back()
        for gauge in self._gauges:
            taken = self._taken[stage][gauge.name]
            taken.peak = gauge.peak()
            taken.end = gauge.used()
        self.cur_stage = None

    def stop_and_update_metrics(self, metrics: dict[str, Any] | None = None) -> None:
        """End the stage of the calling method, and add what it took to `metrics`."""
        if not self.skip_memory_metrics:
            self.report(self.derive_stage(), metrics)

    def update_metrics(self, stage: str, metrics: dict[str, Any]) -> None:
        """Add what `stage` took to `metrics`, and, the first time, what construction took."""
        if self.skip_memory_metrics or self.cur_stage not in (None, stage):
            return
        tells_of_init = not self.init_reported and "init" in self._taken
        for told in ("init", stage) if tells_of_init else (stage,):
            for name, taken in self._taken.get(told, {}).items():
                metrics[f"{told}_mem_{name}_alloc_delta"] = taken.alloc
                metrics[f"{told}_mem_{name}_peaked_delta"] = taken.peaked
        if tells_of_init:
            metrics.update({f"before_init_mem_{name}": taken.begin for name, taken in self._taken["init"].items()})
            self.init_reported = True

    def derive_stage(self) -> str:
        """The stage of the method that calls what calls this.

        Raises:
            ValueError: It is none of those that a stage is named after.
        """
        frame: FrameType | None = sys._getframe(2)
        name = "" if frame is None else frame.f_code.co_name
        if name not in self.stages:
            raise ValueError(f"{name!r} is no stage: memory is measured in {', '.join(self.stages)}")
        return self.stages[name]

    def cpu_mem_used(self) -> int:
        """What the process has in RAM now, in bytes; 0 where nothing is measured."""
        return next((gauge.used() for gauge in self._gauges if gauge.name == "cpu"), 0)

    def _give_back(self) -> None:
        """Free what nobody holds, so that it is not taken for what the stage needs."""
        gc.collect()
        for gauge in self._gauges:
            gauge.give_back()
