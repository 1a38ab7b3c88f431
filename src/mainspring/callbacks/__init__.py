"""Callbacks: what happens around the loop. `base` has the events in their order."""

from __future__ import annotations

from mainspring.callbacks.base import EVENTS, CallbackHandler, TrainerCallback
from mainspring.callbacks.early_stopping import EarlyStoppingCallback
from mainspring.callbacks.ema import EMACallback
from mainspring.callbacks.flow import DefaultFlowCallback
from mainspring.callbacks.progress import PrinterCallback, ProgressCallback

__all__ = [
    "EVENTS",
    "CallbackHandler",
    "DefaultFlowCallback",
    "EMACallback",
    "EarlyStoppingCallback",
    "PrinterCallback",
    "ProgressCallback",
    "TrainerCallback",
]
