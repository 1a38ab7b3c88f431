"""What an override that calls its superclass finds of methods whose machinery is not here yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mainspring import Trainer, TrainingArguments
from mainspring.errors import NotAvailableError
from tests.helpers import data, models


def trainer_in(folder: Path, cls: type[Trainer] = Trainer) -> Trainer:
    args = TrainingArguments(str(folder), use_cpu=True, max_steps=1, report_to="none", save_strategy="no")
    return cls(model=models.Regressor(), args=args, train_dataset=data.Items(data.points(8)))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("_push_from_checkpoint", ("checkpoint-1",)),
        ("_tune_save_checkpoint", ("checkpoint-1",)),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(name: str, arguments: tuple[Any, ...], tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match=f"{name}.*not available yet"):
        getattr(trainer_in(tmp_path), name)(*arguments)


def test_a_search_for_batch_sizes_of_ones_own_is_told_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="_update_auto_batch_size was removed.*cuts micro-batches"):
        trainer_in(tmp_path)._update_auto_batch_size(4)


def test_there_is_no_push_to_finish(tmp_path: Path) -> None:
    assert trainer_in(tmp_path)._finish_current_push() is None


def test_metrics_are_reported_to_nobody_outside_a_search(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    metrics = {"eval_loss": 1.0}
    trainer._report_to_hp_search(None, 1, metrics)
    trainer._report_to_hp_search({"learning_rate": 0.1}, 1, metrics)
    assert metrics == {"eval_loss": 1.0}
    trainer.hp_search_backend = "optuna"  # what a search would set
    with pytest.raises(NotAvailableError, match="_report_to_hp_search"):
        trainer._report_to_hp_search({"learning_rate": 0.1}, 1, metrics)


def test_an_override_that_measures_memory_itself_runs(tmp_path: Path) -> None:
    class Measured(Trainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            self._memory_tracker.start()
            output = super().train(*args, **kwargs)
            self._memory_tracker.stop_and_update_metrics(output.metrics)
            return output

    metrics = trainer_in(tmp_path, Measured).train().metrics
    assert not any("_mem_" in name for name in metrics)
