"""Evaluate on this process of several, with loaders of every making, and save the metrics of each case."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader

from mainspring import Trainer, TrainingArguments
from tests.helpers import data, models

ROWS = 10


class PlainLoader(Trainer):
    """Every process goes through all of the data."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return DataLoader(self.eval_dataset, batch_size=self.args.eval_batch_size, collate_fn=self.data_collator)


class PreparedLoader(PlainLoader):
    """Accelerate shares it."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return self.accelerator.prepare(super().get_eval_dataloader(eval_dataset))


def metrics_of(prediction: Any) -> dict[str, float]:
    """How many rows there are, how many different ones, and whether predictions still belong to their labels."""
    labels = np.asarray(prediction.label_ids)
    return {
        "rows": len(labels),
        "different": len(np.unique(labels)),
        "error": float(((np.asarray(prediction.predictions) - labels) ** 2).mean()),
    }


def sharded(*sizes: int) -> Any:
    """A `datasets` stream of one shard per size."""

    def generate(sizes: list[int]) -> Any:
        points = data.points(sum(SHARDS))
        for size in sizes:
            start = sum(SHARDS[: SHARDS.index(size)])
            yield from ({"x": p["x"].tolist(), "labels": float(p["labels"])} for p in points[start : start + size])

    return datasets.IterableDataset.from_generator(generate, gen_kwargs={"sizes": list(sizes)}).with_format("torch")


SHARDS = (2, ROWS - 2)

CASES: dict[str, tuple[type[Trainer], Any]] = {
    "map": (Trainer, lambda: data.Items(data.points(ROWS))),
    "plain": (PlainLoader, lambda: data.Items(data.points(ROWS))),
    "prepared": (PreparedLoader, lambda: data.Items(data.points(ROWS))),
    "stream": (Trainer, lambda: data.Stream(data.points(ROWS))),
    "shards": (Trainer, lambda: sharded(*SHARDS)),
    "fewer than processes": (Trainer, lambda: data.Items(data.points(1))),
}


def build(kind: type[Trainer], rows: Any, folder: Path, **options: Any) -> Trainer:
    torch.manual_seed(1)
    args = TrainingArguments(
        str(folder), per_device_eval_batch_size=4, use_cpu=True, disable_tqdm=True, report_to="none", **options
    )
    return kind(models.Regressor(), args, eval_dataset=rows, compute_metrics=metrics_of)


def main(out: Path) -> None:
    """Save the metrics of every case, and what `accelerator.prepare` makes of a model, for this rank."""
    found: dict[str, Any] = {}
    for name, (kind, rows) in CASES.items():
        found[name] = build(kind, rows(), out / "run").evaluate()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        trainer = build(Trainer, None, out / "run", ddp_find_unused_parameters=True, ddp_bucket_cap_mb=3)
        wrapped: Any = trainer.accelerator.prepare(models.Regressor())
        found["wrapper"] = {"find_unused": wrapped.find_unused_parameters, "bucket": wrapped.bucket_bytes_cap}
    (out / f"evaluation-rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
