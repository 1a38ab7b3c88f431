"""Optimizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from mainspring.arguments.enums import OptimizerNames, SchedulerType
from mainspring.arguments.option import below_one, non_negative, option, pairs, unit_interval


def default_optimizer() -> OptimizerNames:
    """Fused AdamW where torch has it on every device (2.8), else the plain one; torch itself is not imported."""
    try:
        major, minor = (int(part) for part in metadata.version("torch").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return OptimizerNames.ADAMW_TORCH
    return OptimizerNames.ADAMW_TORCH_FUSED if (major, minor) >= (2, 8) else OptimizerNames.ADAMW_TORCH


_DEFAULT_OPTIMIZER = default_optimizer()


@dataclass(kw_only=True)
class OptimizerArguments:
    """Optimizer, schedule, regularisation."""

    learning_rate: float = option(5e-5, "Peak learning rate of the schedule.", check=non_negative)
    lr_scheduler_type: SchedulerType | str = option(
        SchedulerType.LINEAR, "Schedule; `mainspring schedulers` lists them.", choices=SchedulerType
    )
    lr_scheduler_kwargs: dict[str, Any] | str | None = option(None, "Keywords of the schedule.", json=True)
    warmup_steps: float = option(0, "Updates of linear warm-up; below 1, the share of all updates.", check=non_negative)
    optim: OptimizerNames | str = option(
        _DEFAULT_OPTIMIZER,
        "Optimizer; `mainspring optimizers` lists them.",
        choices=OptimizerNames,
        shown="adamw_torch_fused; adamw_torch before torch 2.8",
    )
    optim_args: str | None = option(None, "Keywords of the optimizer, as `key=value,key=value`.", check=pairs)
    optim_target_modules: None | str | list[str] = option(  # noqa: RUF036 - parsers that read one type take the first
        None, "Modules that low-rank optimizers act on."
    )
    weight_decay: float = option(
        0.0, "Decoupled weight decay of every weight that is neither a bias nor a normalisation.", check=non_negative
    )
    adam_beta1: float = option(0.9, "Decay of Adam's mean of gradients.", check=below_one)
    adam_beta2: float = option(0.999, "Decay of Adam's mean of squared gradients.", check=below_one)
    adam_epsilon: float = option(1e-8, "Added to Adam's denominator.", check=non_negative)
    max_grad_norm: float = option(1.0, "Total norm that gradients are clipped to; 0 or less leaves them.", none=0.0)
    label_smoothing_factor: float = option(
        0.0, "Weight of the uniform distribution mixed into the labels.", check=unit_interval
    )
    neftune_noise_alpha: float | None = option(
        None, "Noise on the embeddings while training (NEFTune).", check=non_negative
    )
