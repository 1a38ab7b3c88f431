"""Evaluate or predict in a process of its own, and print by how many MiB the process grew at its peak."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mainspring import Trainer, TrainingArguments
from mainspring.evaluation import StreamingAccuracy

CLASSES = 2000
ROWS = 16_000  # 128 MB of logits


class Wide(nn.Module):
    """A large output of a small model."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, CLASSES)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(x)
        return {"loss": logits.mean(), "logits": logits}


class Rows(Dataset[Any]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.ones(2) * index, "labels": index % CLASSES}


def peak_mib() -> float:
    """The most memory held since it was last set back."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def some(prediction: Any) -> dict[str, float]:
    """A metric that reads a little of everything that was kept."""
    return {"first": float(prediction.predictions[:10].mean()), "rows": len(prediction.label_ids)}


def main(how: str, folder: str) -> None:
    """Print the growth of one of the ways."""
    options: dict[str, Any] = {"eval_memory_limit": 0} if how == "file" else {}
    args = TrainingArguments(
        folder, use_cpu=True, report_to="none", disable_tqdm=True, per_device_eval_batch_size=32, **options
    )
    metric: Any = {"streaming": StreamingAccuracy(), "loss": None}.get(how, some)
    trainer = Trainer(Wide(), args, compute_metrics=metric)

    def work(rows: int) -> None:
        if how in ("npy", "parquet"):
            trainer.predict(Rows(rows), output_file=f"{folder}/p.{how}")
        else:
            trainer.evaluate(Rows(rows))

    work(512)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    before = peak_mib()
    work(ROWS)
    print(peak_mib() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
