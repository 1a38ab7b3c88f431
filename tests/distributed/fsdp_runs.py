"""Short runs of a tiny language model, the same in one process and in several that shard it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from mainspring import Trainer, TrainingArguments
from tests.helpers import data
from tests.helpers.models import tiny_gpt2

BATCH = 8
"""Samples in an update, over all processes."""

STEPS = 4
SAVED = 2
"""Updates of a run, and that after which it saves."""


def world_size() -> int:
    """Processes of this launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def model() -> Any:
    """A GPT-2 with tied embeddings, the same at each call."""
    torch.manual_seed(0)
    return tiny_gpt2(width=32)


def arguments(folder: Path | str, **options: Any) -> TrainingArguments:
    """The options of a run; those of every process together make the same batches."""
    parts = world_size() * options.get("gradient_accumulation_steps", 1)
    given: dict[str, Any] = {
        "use_cpu": True,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH // parts,
        "per_device_eval_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }
    return TrainingArguments(str(folder), **{**given, **options})


def trainer(
    folder: Path | str,
    own_model: nn.Module | None = None,
    callbacks: Sequence[Any] = (),
    cls: Any = Trainer,
    **options: Any,
) -> Any:
    """A trainer of that model, or of another one on the same texts."""
    return cls(
        model() if own_model is None else own_model,
        arguments(folder, **options),
        train_dataset=data.Items(data.ragged_text(40)),
        eval_dataset=data.Items(data.ragged_text(11, 9)),
        data_collator=data.collate_text,
        callbacks=list(callbacks),
    )


def logged(run: Any, key: str = "loss") -> list[float]:
    """A logged series."""
    return [entry[key] for entry in run.state.log_history if key in entry]


def facts(run: Any) -> dict[str, Any]:
    """What a run was, and the numbers it logged."""
    return {
        "losses": logged(run),
        "norms": logged(run, "grad_norm"),
        "world_size": run.args.world_size,
        "wrapper": type(run.model_wrapped).__name__,
        "units": units(run.model_wrapped),
        "share": share_held(run.model),
        "dtensors": all(isinstance(p, DTensor) for p in run.model.parameters()),
        "is_fsdp_enabled": run.is_fsdp_enabled,
        "trainable": run.get_num_trainable_parameters(),
    }


def units(wrapped: nn.Module) -> list[str]:
    """The classes of what is gathered by itself, as the model calls them."""
    found = []
    for module in wrapped.modules():
        if isinstance(module, FSDPModule):
            found.append(type(module).__name__.removeprefix("FSDP"))
        elif isinstance(module, FullyShardedDataParallel):
            found.append(type(module.module).__name__)
    return found


def share_held(model: nn.Module) -> float:
    """How much of the parameters' bytes lies on this process."""
    whole = sum(p.numel() * p.element_size() for p in tiny_gpt2(width=32).parameters())
    held = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(p.numel() * p.element_size() for p in held) / whole


def weights(run: Any) -> dict[str, torch.Tensor]:
    """The whole weights, on the first process."""
    state: dict[str, torch.Tensor] = run.accelerator.get_state_dict(run.model)
    return {name: tensor.detach().clone() for name, tensor in state.items()}
