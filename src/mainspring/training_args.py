"""Door: what scripts import from ``training_args``: the arguments and their enumerations."""

from __future__ import annotations

from mainspring.absent import not_available_yet
from mainspring.arguments import TrainingArguments
from mainspring.arguments.enums import (
    DebugOption,
    FSDPOption,
    HubStrategy,
    IntervalStrategy,
    OptimizerNames,
    ParallelMode,
    SaveStrategy,
    SchedulerType,
)

__all__ = [
    "DebugOption",
    "FSDPOption",
    "HubStrategy",
    "IntervalStrategy",
    "OptimizerNames",
    "ParallelMode",
    "SaveStrategy",
    "SchedulerType",
    "TrainingArguments",
]

__getattr__ = not_available_yet(
    __name__,
    "str_to_bool",
)
