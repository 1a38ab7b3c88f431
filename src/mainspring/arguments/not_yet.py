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
        "save_on_each_node",
        "enable_jit_checkpoint",
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
        "accelerator_config",
        "parallelism_config",
        "fsdp",
        "fsdp_config",
        "deepspeed",
        "length_column_name",
        "sortish_sampler",
        "predict_with_generate",
        "generation_max_length",
        "generation_num_beams",
        "generation_config",
    }
)
"""Options of which every value but the default is refused."""

AVAILABLE: MappingProxyType[str, frozenset[Any]] = MappingProxyType(
    {
        "optim": frozenset({"adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"}),
        "train_sampling_strategy": frozenset({"random", "sequential"}),
        "compat": frozenset({"none", "5"}),
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


_ACCELERATOR_DEFAULTS = {
    "split_batches": False,
    "dispatch_batches": None,
    "even_batches": True,
    "use_seedable_sampler": True,
    "non_blocking": False,
    "gradient_accumulation_kwargs": None,
    "use_configured_state": False,
}
"""What the reference writes for an accelerator_config that nobody gave."""


def problem(name: str, value: Any, default: Any) -> Problem | None:
    """The complaint about a value that cannot be served yet, or None."""
    if name in OPTIONS:
        empty = value in (None, "", [], False) and default in (None, "", [], False)
        if value == default or empty or (name == "accelerator_config" and _asks_nothing(value)):
            return None
        return Problem(name, shown(name, value), "this option is not available yet", "leave it out")
    if name in AVAILABLE and value not in AVAILABLE[name]:
        return Problem(
            name, value, "this value is not available yet", f"use one of {', '.join(sorted(AVAILABLE[name]))}"
        )
    if name == "report_to" and value:
        return Problem(name, value, "reporting services are not available yet", "set report_to='none'")
    return None


def _asks_nothing(config: Any) -> bool:
    """Whether Accelerate's settings are all at their defaults, as in options that the reference saved."""
    return isinstance(config, dict) and config.items() <= _ACCELERATOR_DEFAULTS.items()
