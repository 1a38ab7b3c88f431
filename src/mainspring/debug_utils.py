"""Door: what scripts import from ``debug_utils``."""

from __future__ import annotations

from mainspring.absent import not_available_yet
from mainspring.arguments.enums import DebugOption

__all__ = [
    "DebugOption",
]

__getattr__ = not_available_yet(
    __name__,
    "DebugUnderflowOverflow",
    "detect_overflow",
    "get_abs_min_max",
)
