"""Door: what scripts import from ``integrations.deepspeed``: configurations as objects, and which one is in force."""

from __future__ import annotations

from accelerate.utils import is_deepspeed_available

from mainspring.arguments.deepspeed.hf import HfDeepSpeedConfig, HfTrainerDeepSpeedConfig
from mainspring.arguments.deepspeed.registry import (
    deepspeed_config,
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

__all__ = [
    "HfDeepSpeedConfig",
    "HfTrainerDeepSpeedConfig",
    "deepspeed_config",
    "is_deepspeed_available",
    "is_deepspeed_zero3_enabled",
    "set_hf_deepspeed_config",
    "unset_hf_deepspeed_config",
]
