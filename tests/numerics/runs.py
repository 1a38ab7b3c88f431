"""A small regression with everything that an update changes, and samples whose targets are chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mainspring import Trainer, TrainingArguments
from tests.helpers import data

TIMES = ("runtime", "per_second", "wait", "save_", "saves")
ORDER = torch.randperm(16, generator=torch.Generator().manual_seed(42)).tolist()
"""The order of the first epoch, of sixteen samples."""


class Network(nn.Module):
    """A regression with dropout, which draws numbers, and a batch normalisation, whose statistics every forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(data.FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        values = self.last(self.drop(self.norm(self.first(x)))).squeeze(-1)
        return {"logits": values} if labels is None else {"loss": (values - labels).square().mean(), "logits": values}


def rows(
    count: int = 16, wrong: Mapping[int, float] | None = None, inputs: Mapping[int, float] | None = None
) -> data.Items:
    """Samples, some of which have a target, or inputs, of their own."""
    items = data.points(count)
    for index, target in (wrong or {}).items():
        items[index]["labels"] = target
    for index, value in (inputs or {}).items():
        items[index]["x"] = torch.full_like(items[index]["x"], value)
    return data.Items(items)


def trainer(
    folder: Path, train: Any, kind: type[Trainer] = Trainer, model: nn.Module | None = None, **changes: Any
) -> Trainer:
    """Eight updates of two epochs, unless `changes` say otherwise."""
    callbacks = changes.pop("callbacks", None)
    if "max_steps" in changes:
        changes = {"num_train_epochs": -1, **changes}
    options = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 0.02,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    torch.manual_seed(3)
    return kind(model or Network(), TrainingArguments(str(folder), **options), train_dataset=train, callbacks=callbacks)


def losses(run: Trainer) -> list[float]:
    """The logged losses."""
    return [log["loss"] for log in run.state.log_history if "loss" in log]


def logged(run: Trainer, key: str) -> list[Any]:
    """The logged values of a key, without the last log, which sums up."""
    return [log[key] for log in run.state.log_history if key in log and "train_runtime" not in log]


def history(run: Trainer) -> list[dict[str, Any]]:
    """What was logged, without times."""
    return [{k: v for k, v in log.items() if not any(t in k for t in TIMES)} for log in run.state.log_history]


def everything(run: Trainer) -> dict[str, Any]:
    """What a run has trained, in a form that compares to the bit."""
    tensors = {name: tensor.tolist() for name, tensor in run.model.state_dict().items()}
    steps = {i: {k: v.tolist() for k, v in s.items()} for i, s in run.optimizer.state_dict()["state"].items()}
    schedule = {k: v for k, v in run.lr_scheduler.state_dict().items() if isinstance(v, (int, float, list))}
    return {"model": tensors, "optimizer": steps, "schedule": schedule, "random": torch.get_rng_state().tolist()}


def events(folder: Path) -> list[dict[str, Any]]:
    """The lines of `nonfinite.jsonl`."""
    return [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]
