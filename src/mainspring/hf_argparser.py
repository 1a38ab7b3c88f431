"""Door: what scripts import from ``hf_argparser``."""

from __future__ import annotations

from mainspring.arguments.parser import HfArgumentParser

__all__ = [
    "HfArgumentParser",
]
