"""Options that are declared but whose machinery is not here yet: the one list, which only shrinks."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from mainspring.arguments.masking import shown
from mainspring.errors import Problem

OPTIONS: frozenset[str] = frozenset(
    {
        "optim_target_modules",
        "use_liger_kernel",
        "liger_kernel_config",
        "neftune_noise_alpha",
        "auto_find_batch_size",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "skip_memory_metrics",
        "debug",
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
        "deepspeed",
    }
)
"""Options of which every value but the default is refused."""

AVAILABLE: MappingProxyType[str, frozenset[Any]] = MappingProxyType(
    {
        "optim": frozenset({"adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"}),
        "lr_scheduler_type": frozenset(
            {
                "linear",
                "cosine",
                "cosine_with_restarts",
                "polynomial",
                "constant",
                "constant_with_warmup",
                "inverse_sqrt",
                "reduce_lr_on_plateau",
                "cosine_with_min_lr",
                "cosine_warmup_with_min_lr",
                "warmup_stable_decay",
            }
        ),
    }
)
"""Options of which only some values work yet."""


def problem(name: str, value: Any, default: Any) -> Problem | None:
    """The complaint about a value that cannot be served yet, or None."""
    if name in OPTIONS:
        if _is_plain(value) and (value == default or (_is_empty(value) and _is_empty(default))):
            return None
        return Problem(name, shown(name, value), "this option is not available yet", "leave it out")
    if name in AVAILABLE and value not in AVAILABLE[name]:
        return Problem(
            name, value, "this value is not available yet", f"use one of {', '.join(sorted(AVAILABLE[name]))}"
        )
    if name == "report_to" and value:
        return Problem(name, value, "reporting services are not available yet", "set report_to='none'")
    return None


def _is_plain(value: Any) -> bool:
    """Whether it can be compared as a whole: arrays are compared item by item."""
    return value is None or isinstance(value, (str, bool, int, float, list, tuple))


def _is_empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (str, list)) and not value)
