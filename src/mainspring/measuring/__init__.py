"""What a run takes: memory, time, and the share of what its devices could do.

| question | module |
|---|---|
| how much memory did training take? | `memory` |
| where is that read? | `gauges` |
| how long did training wait for data, and how much did it compute, since the last log? | `window` |
| what helps against waiting? | `waiting` |
| what could the device do? | `peaks` |
| what does the optimizer keep? | `optimizer_state` |
| what was the time of an update spent on? | `profiling` |
| how much memory will a run take? | `estimate` |
| and what of it does each process keep where ZeRO divides it? | `estimate_divided` |
| with which learning rate does the loss fall, and with which does it diverge? | `lr_finder` |
"""

from __future__ import annotations

from mainspring.measuring.memory import TrainerMemoryTracker
from mainspring.measuring.optimizer_state import GroupReport, OptimizerReport, optimizer_report

__all__ = ["GroupReport", "OptimizerReport", "TrainerMemoryTracker", "optimizer_report"]
