"""Rows that an evaluation's loader leaves out are left out, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler

from mainspring import Trainer, TrainingArguments


class Echo(nn.Module):
    """Predicts its input; the loss is the mean of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (x + 0 * self.weight).mean(), "logits": x[:, None]}


ROWS = [{"x": torch.tensor(float(i)), "labels": torch.tensor(0.0)} for i in range(10)]


class Own(Trainer):
    """Evaluates with a loader of its own."""

    make: Callable[[Any], Any]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return type(self).make(ROWS)


def varying(sizes: list[int]) -> list[list[int]]:
    starts = [sum(sizes[:position]) for position in range(len(sizes))]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


LOADERS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "all": (lambda rows: DataLoader(rows, batch_size=4), 10),
    "drop_last": (lambda rows: DataLoader(rows, batch_size=4, drop_last=True), 8),
    "a part": (lambda rows: DataLoader(rows, batch_size=4, sampler=range(7)), 7),
    "repeated": (lambda rows: DataLoader(rows, batch_size=4, sampler=[*range(10), 0, 1, 2]), 13),
    "at random": (lambda rows: DataLoader(rows, batch_size=4, sampler=SubsetRandomSampler(range(7))), 7),
    "of several sizes": (lambda rows: DataLoader(rows, batch_sampler=varying([3, 1, 4, 1])), 9),
    "a batch sampler": (lambda rows: DataLoader(rows, batch_sampler=BatchSampler(range(6), 4, False)), 6),
}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), per_device_eval_batch_size=4, use_cpu=True, disable_tqdm=True, **options)


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_of_ones_own_is_gone_through(name: str, tmp_path: Path) -> None:
    make, count = LOADERS[name]
    trainer = type("Made", (Own,), {"make": staticmethod(make)})(Echo(), arguments(tmp_path), eval_dataset=ROWS)
    output = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation")
    seen = output.predictions[:, 0].tolist()
    assert len(seen) == output.num_samples == count
    assert output.metrics["eval_loss"] == pytest.approx(sum(seen) / count)


def test_incomplete_batches_can_be_left_out(tmp_path: Path) -> None:
    trainer = Trainer(Echo(), arguments(tmp_path, dataloader_drop_last=True), eval_dataset=ROWS)
    output = trainer.predict(ROWS)
    assert output.predictions[:, 0].tolist() == list(range(8))
    assert output.metrics["test_loss"] == pytest.approx(3.5)


def test_a_sampler_of_ones_own_says_which_rows(tmp_path: Path) -> None:
    class Seven(Trainer):
        def _get_eval_sampler(self, eval_dataset: Any) -> Any:
            return SubsetRandomSampler(range(7))

    output = Seven(Echo(), arguments(tmp_path), eval_dataset=ROWS).predict(ROWS)
    assert sorted(output.predictions[:, 0].tolist()) == list(range(7))
