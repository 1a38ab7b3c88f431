"""Updates that are left out where memory holds only pieces of a micro-batch: what is run again is cut alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mainspring import Trainer
from tests.numerics import runs

ROWS_THAT_FIT = 2


class Short(Trainer):
    """Memory holds two rows of a micro-batch."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if inputs["x"].shape[0] > ROWS_THAT_FIT:
            raise torch.OutOfMemoryError("out of memory")
        return super().compute_loss(model, inputs, *args, **kwargs)


class Roots(nn.Module):
    """A regression through a module that makes NaN of large values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.root = Root()
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.last(self.root(self.linear(x))).squeeze(-1) - labels).square().mean()}


class Root(nn.Module):
    """Takes a root of what is left of a thousand."""

    def forward(self, x: Tensor) -> Tensor:
        return (1e3 - x.abs()).sqrt()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [0, 3, 6], ids=["first piece", "second piece", "second micro-batch"])
def test_the_report_names_module_row_and_micro_batch(place: int, tmp_path: Path) -> None:
    """Counted in the micro-batch as it was read, not in its pieces."""
    size = runs.rows(1).items[0]["x"].numel()
    model = Roots()
    model.linear = nn.Linear(size, 8)
    train = runs.rows(inputs={runs.ORDER[8 + place]: 1e6})
    run = runs.trainer(
        tmp_path,
        train,
        kind=Short,
        model=model,
        num_train_epochs=1,
        gradient_accumulation_steps=2,
        auto_find_batch_size=True,
        on_nonfinite="skip",
    )
    run.train()
    assert run._progress.pieces == 2
    (event,) = runs.events(tmp_path)
    assert event["batches"] == [2, 3]
    (report,) = event["reports"]
    assert "nan in output" in report
    assert "module: root (Root)" in report
    assert f"row {place % 4} of micro-batch {place // 4}" in report


@pytest.mark.filterwarnings("ignore")
def test_a_micro_batch_that_does_not_run_again_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = runs.rows(wrong={runs.ORDER[10]: float("nan")})
    options = {"num_train_epochs": 1, "auto_find_batch_size": True, "on_nonfinite": "skip"}
    run = runs.trainer(tmp_path, train, kind=Short, **options)
    monkeypatch.setattr("mainspring.guarding._as_learned", lambda _, batches: (list(batches), [(0, 0)]))
    run.train()
    (event,) = runs.events(tmp_path)
    assert "nan in labels" in event["reports"][0]
    assert "row 2 of micro-batch 0" in event["reports"][0]
