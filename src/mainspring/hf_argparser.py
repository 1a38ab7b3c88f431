"""Door: what scripts import from ``hf_argparser``."""

from __future__ import annotations

from mainspring.absent import not_available_yet
from mainspring.arguments.parser import HfArg, HfArgumentParser

__all__ = [
    "HfArg",
    "HfArgumentParser",
]

__getattr__ = not_available_yet(
    __name__,
    "DataClass",
    "DataClassType",
    "make_choice_type_function",
    "string_to_bool",
)
