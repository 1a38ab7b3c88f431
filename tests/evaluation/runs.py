"""Trainers whose evaluations the tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mainspring import Trainer, TrainingArguments
from tests.helpers import data, models

ROWS = 10


def trainer(folder: Path, model: Any = None, kind: type[Trainer] = Trainer, **inputs: Any) -> Trainer:
    """A trainer of a small BERT, or of `model`; what is no argument of the Trainer is an option."""
    names = ("train_dataset", "eval_dataset", "compute_metrics", "data_collator", "preprocess_logits_for_metrics")
    given = {name: inputs.pop(name) for name in names if name in inputs}
    given = {"eval_dataset": data.Items(data.sentences(ROWS, 99)), **given}
    defaults = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_eval_batch_size": 4}
    args = TrainingArguments(str(folder), **{**defaults, **inputs})
    torch.manual_seed(1)
    return kind(model if model is not None else models.tiny_bert(), args, **given)


def texts(folder: Path, count: int = 9, **inputs: Any) -> Trainer:
    """A trainer of a language model, whose batches have several widths."""
    torch.manual_seed(1)
    rows = data.Items(data.ragged_text(count, seed=1))
    return trainer(folder, models.tiny_gpt2(), eval_dataset=rows, data_collator=data.collate_text, **inputs)


def accuracy(prediction: Any) -> dict[str, float]:
    """Of all rows at once."""
    hits = np.asarray(prediction.predictions).argmax(-1) == np.asarray(prediction.label_ids)
    return {"accuracy": float(hits[np.asarray(prediction.label_ids) != -100].mean())}


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without what the clock says."""
    endings = ("runtime", "per_second", "preparation_time")
    return {name: value for name, value in metrics.items() if not name.endswith(endings)}
