"""Evaluate on this process of several with every form of metric and of result, and save what comes out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn

from mainspring import Trainer, TrainingArguments
from mainspring.evaluation import StreamingAccuracy
from tests.helpers import data, models

SIZES = {"even": 8, "uneven": 11, "fewer than processes": 1}
CLASSES = 3


class Gathered:
    """A streaming metric that cannot be merged."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.hits = 0.0

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        self.rows += labels.tolist()
        self.hits += float((predictions.argmax(-1) == labels % CLASSES).sum())

    def compute(self) -> dict[str, Any]:
        return {"rows": len(self.rows), "different": len(set(self.rows)), "hits": self.hits}


class Merged(Gathered):
    """One that can."""

    def merge(self, other: Gathered) -> None:
        self.rows += other.rows
        self.hits += other.hits


def whole(prediction: Any) -> dict[str, Any]:
    """A function of everything that says the same."""
    metric = Gathered()
    metric.update(*(torch.as_tensor(np.asarray(part)) for part in (prediction.predictions, prediction.label_ids)))
    return metric.compute()


METRICS: dict[str, Any] = {
    "whole": lambda: whole,
    "gathered": Gathered,
    "merged": Merged,
    "accuracy": StreamingAccuracy,
    "torchmetrics": lambda: torchmetrics.MetricCollection(
        {
            "mean": torchmetrics.classification.MulticlassAccuracy(CLASSES, average="micro"),
            "count": torchmetrics.classification.MulticlassStatScores(CLASSES, average="micro"),
        }
    ),
}


class Classifier(nn.Module):
    """Labels are the rows' own numbers, of which the classes are the rests; `named` adds an object a row."""

    def __init__(self, named: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(models.FEATURES, CLASSES)
        self.named = named

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Any]:
        logits = self.head(x)
        names = {"names": [f"row {int(label)}" for label in labels]} if self.named else {}
        return {"loss": nn.functional.cross_entropy(logits, labels % CLASSES), "logits": logits, **names}


def build(folder: Path, metric: Any = None, named: bool = False, **options: Any) -> Trainer:
    torch.manual_seed(1)
    args = TrainingArguments(
        str(folder), per_device_eval_batch_size=3, use_cpu=True, disable_tqdm=True, report_to="none", **options
    )
    return Trainer(Classifier(named), args, compute_metrics=metric)


def rows(count: int, classes: bool = False) -> data.Items:
    return data.Items(
        [{**item, "labels": index % CLASSES if classes else index} for index, item in enumerate(data.points(count))]
    )


def main(out: Path) -> None:
    """Save the metrics and predictions of every case for this rank."""
    rank, found = os.environ.get("RANK", "0"), {}
    for size, count in SIZES.items():
        for compat in ("none", "5"):
            for name, metric in METRICS.items():
                trainer = build(out / "run", metric(), compat=compat)
                classes = name in ("accuracy", "torchmetrics")
                found[f"{name}, {size}, {compat}"] = trainer.evaluate(rows(count, classes))
        named = build(out / "run", named=True, eval_use_gather_object=True).predict(rows(count))
        found[f"objects, {size}"] = [part if isinstance(part, list) else part.tolist() for part in named.predictions]
        plain = build(out / "run", whole, eval_memory_limit=0).predict(rows(count))
        found[f"predictions, {size}"] = plain.predictions.tolist()
        for suffix in ("npy", "parquet"):
            file = out / f"p {size}.{suffix}"
            written = build(out / "run", whole).predict(rows(count), output_file=file)
            assert file.exists()
            found[f"{suffix}, {size}"] = written.metrics
    (out / f"forms-rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
