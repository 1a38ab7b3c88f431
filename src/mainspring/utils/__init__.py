"""Door: what scripts import from ``utils``: logging, and the names of a model's files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mainspring.utils import logging

if TYPE_CHECKING:
    from mainspring.checkpoint import (
        ADAPTER_SAFE_WEIGHTS_NAME,
        ADAPTER_WEIGHTS_NAME,
        CONFIG_NAME,
        GENERATION_CONFIG_NAME,
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
        WEIGHTS_INDEX_NAME,
        WEIGHTS_NAME,
    )

__all__ = [
    "ADAPTER_SAFE_WEIGHTS_NAME",
    "ADAPTER_WEIGHTS_NAME",
    "CONFIG_NAME",
    "GENERATION_CONFIG_NAME",
    "SAFE_WEIGHTS_INDEX_NAME",
    "SAFE_WEIGHTS_NAME",
    "WEIGHTS_INDEX_NAME",
    "WEIGHTS_NAME",
    "logging",
]


def __getattr__(name: str) -> object:
    # Every module passes here on its way to utils.logging: the names of files must not bring torch along.
    if name in __all__:
        return getattr(import_module("mainspring.checkpoint"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
