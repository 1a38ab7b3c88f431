"""Since when there is an option: which ones version 4.37 had, under the same name, and which ones came after it."""

from __future__ import annotations

import dataclasses

from mainspring.arguments.own import OwnArguments

AFTER_4_37: frozenset[str] = frozenset(
    {
        "accelerator_config",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "average_tokens_across_devices",
        "batch_eval_metrics",
        "dataloader_in_order",
        "dataloader_multiprocessing_context",
        "dataloader_prefetch_factor",
        "ddp_static_graph",
        "enable_jit_checkpoint",
        "eval_do_concat_batches",
        "eval_on_start",
        "eval_strategy",
        "eval_use_gather_object",
        "hub_revision",
        "include_for_metrics",
        "liger_kernel_config",
        "optim_target_modules",
        "parallelism_config",
        "project",
        "restore_callback_states_from_checkpoint",
        "torch_empty_cache_steps",
        "trackio_bucket_id",
        "trackio_space_id",
        "trackio_static_space_id",
        "train_sampling_strategy",
        "use_cache",
        "use_liger_kernel",
    }
)
"""Options of the newest reference that 4.37 did not have, or not under this name."""

_OURS = frozenset(field.name for field in dataclasses.fields(OwnArguments))


def since(name: str) -> str:
    """The oldest generation that has the option: "4.37", "5", or, where no reference has it, "Mainspring"."""
    return "Mainspring" if name in _OURS else "5" if name in AFTER_4_37 else "4.37"
