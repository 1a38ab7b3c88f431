"""The same samples split into micro-batches otherwise give the same loss, gradient and evaluation, by default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.sides import SUBJECT, Side
from tests.parity.harness import Case, Task, differences, run
from tests.parity.tasks import classifier, language_model, regression, token_loss

pytestmark = pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own defaults")

DEFAULTS = Side(SUBJECT.name, SUBJECT.package)
"""Without the option that asks for the reference's numbers."""

TASKS: Mapping[str, tuple[Task, Mapping[str, Any]]] = {
    "language model": (language_model(samples=16), {}),
    "classifier": (classifier(samples=16), {}),
    "plain module": (regression(samples=16), {}),
    "custom loss": (language_model(samples=16, compute_loss_func=token_loss), {}),
    "smoothed language model": (language_model(samples=16), {"label_smoothing_factor": 0.1}),
    "smoothed classifier": (classifier(samples=16), {"label_smoothing_factor": 0.1}),
}

SPLITS = {"halves": (4, 2), "quarters": (2, 4), "singles": (1, 8)}
"""Name -> batch size and micro-batches per update; eight samples an update in each."""

TOLERANCE = 2e-5
"""Sums in another order, over four updates."""


def _trace(task: str, folder: Path, **options: Any) -> Any:
    model_and_data, more = TASKS[task]
    plain = {"optim": "sgd", "max_grad_norm": 0, "num_train_epochs": 2, "eval_strategy": "epoch"}
    trace = run(DEFAULTS, Case(task, model_and_data, {**plain, **more, **options}, why="its own baseline"), folder)
    trace.state = {}
    for log in trace.logs:
        log.pop("total_flos", None)
        log.pop("padding_fraction", None)  # how much is padding is a matter of what is put together
    return trace


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_micro_batches_do_not_change_the_update(task: str, split: str, tmp_path: Path) -> None:
    """Logged losses, gradient norms and final weights equal those of the whole batch at once."""
    size, parts = SPLITS[split]
    whole = _trace(task, tmp_path / "whole", per_device_train_batch_size=8)
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    assert differences(whole, _trace(task, tmp_path / "split", **options), TOLERANCE) == []


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_evaluation_batches_do_not_change_the_evaluation(task: str, size: int, tmp_path: Path) -> None:
    """The evaluation loss is that of the data set, not of how it falls into batches."""
    whole = _trace(task, tmp_path / "whole", per_device_eval_batch_size=16)
    split = _trace(task, tmp_path / "split", per_device_eval_batch_size=size)
    assert differences(whole, split, TOLERANCE) == []
