"""Door: what scripts import from ``debug_utils``."""

from __future__ import annotations

from mainspring.arguments.enums import DebugOption
from mainspring.diagnostics.overflow import DebugUnderflowOverflow, detect_overflow, get_abs_min_max

__all__ = [
    "DebugOption",
    "DebugUnderflowOverflow",
    "detect_overflow",
    "get_abs_min_max",
]
