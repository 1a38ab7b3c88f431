"""A small training run with everything that a resumed one must restore, and what two runs are compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mainspring import Trainer, TrainingArguments
from tests.helpers import data, models

TIMES = ("runtime", "per_second", "wait_fraction")


def trainer(folder: Path, **changes: Any) -> Trainer:
    """A language model with dropout, nine updates in three epochs; `changes` are options, `callbacks`, `metric` and `rows`."""
    callbacks, rows = changes.pop("callbacks", None), changes.pop("rows", 22)
    metric = changes.pop("metric", None)
    options = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 2,
        "eval_strategy": "epoch",
        "save_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    torch.manual_seed(3)
    return Trainer(
        models.tiny_gpt2(dropout=0.1),
        TrainingArguments(str(folder), **options),
        data_collator=data.collate_text,
        train_dataset=data.Items(data.ragged_text(rows)),
        eval_dataset=data.Items(data.ragged_text(9, seed=1)),
        compute_metrics=metric,
        callbacks=callbacks,
    )


def history(of: Trainer) -> list[dict[str, Any]]:
    """What was logged, without times."""
    return [{k: v for k, v in log.items() if not any(t in k for t in TIMES)} for log in of.state.log_history]


def weights(of: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the model's tensors."""
    return {name: tensor.clone() for name, tensor in of.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two models are equal to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
