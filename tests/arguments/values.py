"""A value for each option that is not its default, and what must stand beside it."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from mainspring import Seq2SeqTrainingArguments
from mainspring.arguments.docstring import default_of

FIELDS = {field.name: field for field in dataclasses.fields(Seq2SeqTrainingArguments)}
HINTS = typing.get_type_hints(Seq2SeqTrainingArguments)

OTHER_VALUES: dict[str, Any] = {
    "accelerator_config": {"non_blocking": True},
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "eval_memory_limit": "500MB",
    "eval_steps": 0.25,
    "fsdp": "full_shard",
    "fsdp_config": {"version": 2},
    "parallelism_config": {"dp_shard_size": 2},
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "include_for_metrics": ["inputs", "loss"],
    "include_num_input_tokens_seen": "non_padding",
    "label_names": ["labels", "start_positions"],
    "label_smoothing_factor": 0.1,
    "ema_decay": 0.99,
    "max_rollbacks": 5,
    "learning_rate": 1e-7,
    "liger_kernel_config": {"rope": True},
    "lr_scheduler_kwargs": {
        "num_cycles": 2,
        "rate": 1e-5,
        "name": "text",
        "on": True,
        "deep": {"list": [1, 2.5, None]},
    },
    "optim_args": "momentum=0.9,nesterov=true",
    "past_index": 2,
    "peak_flops": 1e12,
    "profile_steps": "2:4",
    "optim_target_modules": "all-linear",
    "lr_groups": {"^head": {"lr": 0.1, "weight_decay": 0}},
    "report_to": "tensorboard",
    "save_steps": 0.5,
    "warmup_steps": 0.03,
    "debug": "underflow_overflow",
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "greater_is_better": False,
    "neftune_noise_alpha": 2.5,
    "num_train_epochs": 1.5,
}
"""Options of which no value that is right follows from the type."""

BESIDE: dict[str, dict[str, Any]] = {
    "dataloader_multiprocessing_context": {"dataloader_num_workers": 2},
    "dataloader_persistent_workers": {"dataloader_num_workers": 2},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 2},
    "load_best_model_at_end": {"eval_strategy": "epoch", "save_strategy": "epoch"},
    "metric_for_best_model": {"eval_strategy": "epoch"},
    "greater_is_better": {"eval_strategy": "epoch", "metric_for_best_model": "accuracy"},
    "save_strategy": {"eval_strategy": "epoch"},
    "eval_steps": {"eval_strategy": "steps"},
}
"""Options that some need beside them."""


def another_value(name: str) -> Any:
    """A value that the option may have, other than its default."""
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    default = default_of(FIELDS[name])
    if (choices := FIELDS[name].metadata["choices"]) is not None:
        values = [getattr(choice, "value", choice) for choice in choices]
        return next(v for v in values if v != default)
    kinds = {HINTS[name], *typing.get_args(HINTS[name])}
    if default and isinstance(default, list):
        return default[1:]
    return (not default) if bool in kinds else 3 if kinds & {int, float} else "other"
