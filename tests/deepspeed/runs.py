"""Short runs of a tiny language model, the same in one process and in several that DeepSpeed divides it over."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mainspring import Trainer, TrainingArguments
from tests.helpers import data
from tests.helpers.models import tiny_gpt2

BATCH = 8
"""Samples in an update, over all processes."""

STEPS = 4
SAVED = 2
"""Updates of a run, and that after which it saves."""

SAVES = {"save_strategy": "steps", "save_steps": SAVED}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}


def compile_nothing() -> None:
    """Sums over processes of one machine go through gloo, rather than an operation that has to be built first."""
    if importlib.util.find_spec("deepspeed"):
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def world_size() -> int:
    """Processes of this launch."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or "1")


def config(stage: int, **sections: Any) -> dict[str, Any]:
    """A configuration that leaves to the options what they say."""
    keeps = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}  # a tiny model would stay whole
    zero = {"stage": stage, **keeps, **sections.pop("zero_optimization", {})}
    return {"zero_optimization": zero, "zero_allow_untested_optimizer": True, "steps_per_print": None, **sections}


def optimizer(kind: str = "AdamW", **params: Any) -> dict[str, Any]:
    """The section of an optimizer, whose settings are the options'."""
    return {"type": kind, "params": {"lr": "auto", "weight_decay": "auto", **params}}


ADAMW = optimizer(betas="auto", eps="auto", torch_adam=True)
DECAYS = {
    "type": "WarmupDecayLR",
    "params": {
        "last_batch_iteration": -1,
        "total_num_steps": "auto",
        "warmup_min_lr": "auto",
        "warmup_max_lr": "auto",
        "warmup_num_steps": "auto",
        "warmup_type": "linear",
    },
}
"""A schedule of DeepSpeed's."""


def model() -> Any:
    """A GPT-2 with tied embeddings, the same at each call."""
    torch.manual_seed(0)
    return tiny_gpt2(width=32)


def options_of(**options: Any) -> dict[str, Any]:
    """The options of a run; those of every process together make the same batches."""
    parts = world_size() * options.get("gradient_accumulation_steps", 1)
    given: dict[str, Any] = {
        "use_cpu": True,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH // parts,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }
    return {**given, **options}


def trainer(
    folder: Path | str,
    own_model: nn.Module | None = None,
    callbacks: Sequence[Any] = (),
    cls: Any = Trainer,
    arguments: Any = TrainingArguments,
    given: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A trainer of that model, or of another one on the same texts."""
    return cls(
        model() if own_model is None else own_model,
        arguments(str(folder), **options_of(**options)),
        train_dataset=data.Items(data.ragged_text(40)),
        eval_dataset=data.Items(data.ragged_text(11, 9)),
        data_collator=data.collate_text,
        callbacks=list(callbacks),
        **(given or {}),
    )


def logged(run: Any, key: str = "loss") -> list[float]:
    """A logged series."""
    return [entry[key] for entry in run.state.log_history if key in entry]


def series(run: Any) -> dict[str, list[float]]:
    """All that a run logs of its numbers."""
    return {key: logged(run, key) for key in ("loss", "grad_norm", "learning_rate", "eval_loss")}


def facts(run: Any) -> dict[str, Any]:
    """What a run was, and how much of it lay on this process."""
    engine = run.deepspeed
    return {
        "world_size": run.args.world_size,
        "wrapper": type(run.model_wrapped).__name__,
        "stage": engine.zero_optimization_stage(),
        "optimizer": type(run.optimizer).__name__,
        "inner": type(run.optimizer.inner).__name__,
        "numbers": held(run),
        "states": states_held(run),
    }


def whole() -> int:
    """Numbers in the model."""
    return sum(parameter.numel() for parameter in tiny_gpt2(width=32).parameters())


def held(run: Any) -> int:
    """Numbers of the weights that lie on this process."""
    return sum(getattr(p, "ds_tensor", p).numel() for p in run.model.parameters())


def states_held(run: Any) -> int:
    """Numbers in the optimizer's states on this process."""
    states = run.optimizer.inner.state.values()
    return sum(value.numel() for state in states for value in state.values() if torch.is_tensor(value))


def weights(run: Any) -> dict[str, torch.Tensor]:
    """The whole weights, on the first process; {} on the others, where they are in pieces."""
    state: dict[str, torch.Tensor] = run.accelerator.get_state_dict(run.model)
    return {name: tensor.detach().clone() for name, tensor in state.items()}
