"""Door: what scripts import from ``hf_argparser``."""

from __future__ import annotations

from mainspring.arguments.parser import HfArg, HfArgumentParser

__all__ = [
    "HfArg",
    "HfArgumentParser",
]
