"""Door: what scripts import from ``debug_utils``."""

from __future__ import annotations

from mainspring.arguments.enums import DebugOption

__all__ = [
    "DebugOption",
]
