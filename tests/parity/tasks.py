"""What the cases train: a language model, a classifier and a plain regression network, each on a few dozen samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.helpers import data, models
from tests.helpers.sides import Side
from tests.parity.harness import Task

EVAL_SEED = 99

LM = {"num_train_epochs": 2, "per_device_train_batch_size": 2}
"""Fourteen texts in batches of two: seven batches an epoch, so that three per update leave a short last one."""

EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}
"""Evaluation after every second update."""


def language_model(
    dropout: float = 0.0,
    samples: int = 14,
    model: Callable[[], Any] | None = None,
    **extra: Any,
) -> Task:
    """A GPT-2 on ragged texts: every batch has another number of labels, and the last batch is short."""

    def inputs(side: Side) -> dict[str, Any]:
        return {
            "train_dataset": data.Items(data.ragged_text(samples)),
            "eval_dataset": data.Items(data.ragged_text(7, EVAL_SEED)),
            "data_collator": data.collate_text,
            **extra,
        }

    return Task(model or (lambda: models.tiny_gpt2(dropout)), inputs)


def classifier(dropout: float = 0.0, samples: int = 22, **extra: Any) -> Task:
    """A BERT on fixed-length rows; the default collator turns the column `label` into `labels`."""

    def inputs(side: Side) -> dict[str, Any]:
        return {
            "train_dataset": data.Items(data.sentences(samples)),
            "eval_dataset": data.Items(data.sentences(10, EVAL_SEED)),
            **extra,
        }

    return Task(lambda: models.tiny_bert(dropout), inputs)


def regression(
    dropout: float = 0.0,
    samples: int = 22,
    outputs: Callable[[Tensor | None, Tensor], Any] = models.loss_and_prediction_dict,
    **extra: Any,
) -> Task:
    """A plain `nn.Module` on rows of four features."""

    def inputs(side: Side) -> dict[str, Any]:
        return {
            "train_dataset": data.Items(data.points(samples)),
            "eval_dataset": data.Items(data.points(10, EVAL_SEED)),
            **extra,
        }

    return Task(lambda: models.Regressor(dropout, outputs), inputs)


def with_inputs(task: Task, more: Callable[[Side], dict[str, Any]]) -> Task:
    """The same task with constructor arguments that must be built anew for each run or differ by side."""
    return Task(task.model, lambda side: {**task.inputs(side), **more(side)}, task.trainer)


def with_model(task: Task, change: Callable[[Any], Any]) -> Task:
    """The same task with its model changed after it is built."""
    return Task(lambda: change(task.model()), task.inputs, task.trainer)


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of rows whose largest logit is the label's."""
    logits, labels = prediction
    return {"accuracy": float((np.argmax(logits, axis=-1) == labels).mean())}


def mean_error(prediction: Any) -> dict[str, float]:
    """Mean absolute error of a regression."""
    return {"mae": float(np.abs(prediction.predictions - prediction.label_ids).mean())}


def token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """A custom loss: cross-entropy summed over the predicted tokens, divided by how many the whole update has."""
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    summed = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum", ignore_index=-100)
    return summed / num_items_in_batch if num_items_in_batch is not None else summed / (labels[:, 1:] != -100).sum()


class BatchedAccuracy:
    """Accuracy that is fed one batch at a time and asked for the result with the last."""

    def __init__(self) -> None:
        self._hits: list[float] = []

    def __call__(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        """Add a batch; with `compute_result`, give the mean and start over."""
        self._hits += (prediction.predictions.argmax(-1) == prediction.label_ids).float().tolist()
        if not compute_result:
            return {}
        hits, self._hits = self._hits, []
        return {"accuracy": sum(hits) / len(hits)}


def poisoned(items: Sequence[Mapping[str, Any]], index: int) -> list[dict[str, Any]]:
    """The same items with a target that is not a number at `index`."""
    return [{**item, "labels": float("nan")} if i == index else dict(item) for i, item in enumerate(items)]


def with_own_optimizer() -> Task:
    """A regression whose script made optimizer and schedule itself."""
    base = regression()
    current: list[torch.nn.Module] = []

    def remember(model: Any) -> Any:
        current[:] = [model]
        return model

    def optimizers(side: Side) -> dict[str, Any]:
        optimizer = torch.optim.SGD(current[0].parameters(), lr=0.05, momentum=0.9)
        return {"optimizers": (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5))}

    return with_inputs(with_model(base, remember), optimizers)
