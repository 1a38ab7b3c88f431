"""The reference and this library on the same configuration, in launches of their own: each keeps state in its process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.deepspeed.runs import ADAMW, DECAYS, SAVES, config, logged, model, options_of
from tests.helpers import data
from tests.helpers.sides import Side

LEFT = dict.fromkeys(
    ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"
)
"""What the reference fills in only where it is asked to."""


WARMS = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
"""Of a schedule that warms up by the logarithm, unless told otherwise."""


def read_by_users(run: Any) -> dict[str, Any]:
    """What scripts read to know how they are trained."""
    accelerator, args, plugin = run.accelerator, run.args, run.accelerator.state.deepspeed_plugin
    settings = {**plugin.deepspeed_config, "steps_per_print": None}
    for name in ("fp16", "bf16"):  # which the reference writes down even where nobody asks for them
        if settings.get(name) == {"enabled": False}:
            del settings[name]
    return {
        "type": str(accelerator.distributed_type),
        "type of state": str(accelerator.state.distributed_type),
        "plugin": [type(plugin).__name__, type(args.deepspeed_plugin).__name__, accelerator.deepspeed_plugin is plugin],
        "of plugin": [plugin.zero_stage, plugin.gradient_accumulation_steps, plugin.gradient_clipping],
        "divides while loading": plugin.is_zero3_init_enabled(),
        "configuration": settings,
        "same configuration": args.hf_deepspeed_config.config == plugin.deepspeed_config,
        "of arguments": [type(args.hf_deepspeed_config).__name__, args.parallel_mode.value, args.world_size],
        "processes": [accelerator.num_processes, args.distributed_state.num_processes, args.distributed_state.backend],
        "enabled": [run.is_deepspeed_enabled, run.is_fsdp_enabled],
        "engine": type(run.deepspeed).__name__,
        "engine is wrapper": run.deepspeed is run.model_wrapped,
        "model": type(run.model).__name__,
        "precision": [accelerator.mixed_precision, accelerator.scaler, accelerator.native_amp],
    }


def _config(stage: int, **sections: Any) -> dict[str, Any]:
    return config(stage, **LEFT, **sections)


PARITY: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zero0": (_config(0), {}),
    "zero1": (_config(1), {}),
    "zero2": (_config(2), {}),
    "zero3": (_config(3), {}),
    "zero2_bf16": (_config(2, bf16={"enabled": "auto"}), {"bf16": True}),
    "zero3_bf16": (_config(3, bf16={"enabled": "auto"}), {"bf16": True}),
    "theirs": (_config(2, optimizer=ADAMW, scheduler=DECAYS), {}),
    "their_optimizer": (_config(2, optimizer=ADAMW), {}),
    "their_schedule": (_config(2, scheduler=DECAYS), {}),
    "accumulates": (_config(2), {"gradient_accumulation_steps": 2}),
    "theirs_zero3": (_config(3, optimizer=ADAMW, scheduler=DECAYS), {}),
    "log_warmup": (_config(2, scheduler={"type": "WarmupLR", "params": WARMS}), {}),
    "accumulates_bf16": (_config(3, bf16={"enabled": "auto"}), {"bf16": True, "gradient_accumulation_steps": 2}),
    "unclipped": (_config(2), {"max_grad_norm": 0.0}),
}
"""Configurations, and options beside them."""


def one_side(side: Side, out: Path, name: str) -> dict[str, Any]:
    """What one library logs of a run."""
    settings, options = PARITY[name]
    given = options_of(**options, **SAVES)
    arguments = side.api.TrainingArguments(str(out), deepspeed=copy.deepcopy(settings), **given, **side.own_options)
    run = side.api.Trainer(
        model(),
        arguments,
        train_dataset=data.Items(data.ragged_text(40)),
        eval_dataset=data.Items(data.ragged_text(11, 9)),
        data_collator=data.collate_text,
    )
    before = read_by_users(run)
    del before["configuration"]  # the reference knows the length of the run already
    run.train()
    keys = ("loss", "grad_norm", "learning_rate")
    found: dict[str, Any] = {"read": [before, read_by_users(run)]}
    found |= {key: logged(run, key) for key in keys}
    found["eval_loss"] = run.evaluate()["eval_loss"]
    found["files"] = sorted(path.name for path in (out / "checkpoint-2").iterdir())
    found["wrapper"] = type(run.model_wrapped).__name__
    return found
