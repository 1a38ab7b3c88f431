"""Metrics that take batches as they come: what is one, what it is given, and that it says what a function would."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mainspring import Trainer
from mainspring.evaluation import StreamingAccuracy, is_streaming
from mainspring.evaluation.batches import Batch
from mainspring.evaluation.kept import Outputs
from mainspring.evaluation.streaming import Gathering, Merging, Synchronising, streamed
from tests.evaluation.runs import accuracy, texts, timeless, trainer
from tests.helpers import data

torchmetrics = pytest.importorskip("torchmetrics")


class Sum:
    """The smallest metric there can be."""

    def __init__(self) -> None:
        self.total = 0.0
        self.given: list[dict[str, Any]] = []

    def update(self, predictions: Tensor, labels: Tensor, **extras: Any) -> None:
        self.given.append({"predictions": predictions, "labels": labels, **extras})
        self.total += float(labels.sum())

    def compute(self) -> dict[str, float]:
        return {"sum": self.total}


class Mergeable(Sum):
    """One that can be brought together."""

    def merge(self, other: Sum) -> None:
        self.total += other.total


class Callable_(Sum):
    """A function that happens to have both methods."""

    def __call__(self, prediction: Any) -> dict[str, float]:
        return {"called": 1.0}


def test_what_is_a_streaming_metric() -> None:
    for metric in (Sum(), StreamingAccuracy(), torchmetrics.MeanMetric(), torchmetrics.MetricCollection([])):
        assert is_streaming(metric)
    for function in (accuracy, Callable_(), SimpleNamespace(compute=accuracy), lambda prediction: {}):
        assert not is_streaming(function)


def test_how_processes_are_brought_together_follows_from_what_it_can() -> None:
    engine = SimpleNamespace(device=torch.device("cpu"))
    kinds = {
        Gathering: Sum(),
        Merging: Mergeable(),
        Synchronising: torchmetrics.MeanMetric(),
    }
    for kind, metric in kinds.items():
        assert type(streamed(metric, engine)) is kind
    collection = torchmetrics.MetricCollection([torchmetrics.MeanMetric()])
    assert type(streamed(collection, engine)) is Synchronising
    own = type("Own", (nn.Module,), {"update": lambda self: None, "compute": lambda self: {}})()
    assert type(streamed(own, engine)) is Gathering


def test_it_says_what_a_function_of_everything_says(tmp_path: Path) -> None:
    for build in (trainer, texts):
        whole = build(tmp_path, compute_metrics=accuracy).evaluate()
        stream = build(tmp_path, compute_metrics=StreamingAccuracy()).evaluate()
        assert timeless(stream) == pytest.approx(timeless(whole))


def test_one_of_torchmetrics_can_be_given_as_it_is(tmp_path: Path) -> None:
    wanted = trainer(tmp_path, compute_metrics=accuracy).evaluate()["eval_accuracy"]
    single = torchmetrics.classification.MulticlassAccuracy(num_classes=2, average="micro")
    found = trainer(tmp_path, compute_metrics=single)
    for _ in range(2):  # begins anew each time
        assert found.evaluate()["eval_MulticlassAccuracy"] == pytest.approx(wanted)
    every = torchmetrics.MetricCollection({"accuracy": single.clone(), "each": _of_each_class()})
    metrics = trainer(tmp_path, compute_metrics=every).evaluate()
    assert metrics["eval_accuracy"] == pytest.approx(wanted)
    assert len(metrics["eval_each"]) == 2


def _of_each_class() -> Any:
    return torchmetrics.classification.MulticlassAccuracy(num_classes=2, average="none")


@pytest.mark.parametrize("reset", [False, True])
def test_each_evaluation_begins_anew(tmp_path: Path, reset: bool) -> None:
    metric = Sum()
    if reset:
        metric.reset = lambda: setattr(metric, "total", 0.0)  # type: ignore[attr-defined]
    two = {"near": data.Items(data.sentences(5, 1)), "far": data.Items(data.sentences(6, 2))}
    sums = {name: float(sum(item["label"] for item in rows.items)) for name, rows in two.items()}
    found = trainer(tmp_path, eval_dataset=two, compute_metrics=metric)
    for _ in range(2):
        metrics = found.evaluate()
        assert {name: metrics[f"eval_{name}_sum"] for name in two} == sums


def test_it_is_given_tensors_and_what_else_was_asked_for(tmp_path: Path) -> None:
    metric = Sum()
    metric.reset = lambda: None  # type: ignore[attr-defined]
    trainer(tmp_path, compute_metrics=metric, include_for_metrics=["inputs", "loss"]).evaluate()
    assert [len(batch["labels"]) for batch in metric.given] == [4, 4, 2]
    for batch in metric.given:
        assert isinstance(batch["predictions"], Tensor)
        assert batch["inputs"].shape == (len(batch["labels"]), 8)
        assert batch["losses"].shape == batch["labels"].shape
    metric.given.clear()
    trainer(tmp_path, compute_metrics=metric).evaluate()
    assert set(metric.given[0]) == {"predictions", "labels"}


def test_predictions_are_made_ready_first(tmp_path: Path) -> None:
    metric = Sum()
    metric.reset = lambda: None  # type: ignore[attr-defined]
    trainer(
        tmp_path, compute_metrics=metric, preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1)
    ).evaluate()
    assert metric.given[0]["predictions"].shape == (4,)


def test_without_labels_there_is_nothing_to_measure(tmp_path: Path) -> None:
    unlabelled = data.Items(data.without(data.sentences(6, 99), "label"))
    found = trainer(tmp_path, eval_dataset=unlabelled, compute_metrics=Sum()).evaluate()
    assert timeless(found) == {"epoch": found.get("epoch")}


def test_nothing_is_kept_in_an_evaluation_and_everything_in_a_prediction(tmp_path: Path) -> None:
    returned = []

    class Watched(Trainer):
        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            returned.append(super().evaluation_loop(*args, **kwargs))
            return returned[-1]

    found = trainer(tmp_path, kind=Watched, compute_metrics=StreamingAccuracy())
    found.evaluate()
    assert returned[-1].predictions is returned[-1].label_ids is None
    assert found.predict(found.eval_dataset).predictions.shape == (10, 2)
    assert returned[-1].metrics["test_accuracy"] == pytest.approx(
        accuracy(SimpleNamespace(predictions=returned[-1].predictions, label_ids=returned[-1].label_ids))["accuracy"]
    )


def test_it_cannot_be_asked_for_every_batch_besides(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_eval_metrics=True: Sum is given every batch anyway"):
        trainer(tmp_path, compute_metrics=Sum(), batch_eval_metrics=True)


def test_rows_that_only_fill_a_batch_up_are_left_out() -> None:
    metric = Mergeable()
    metric.reset = lambda: None  # type: ignore[attr-defined]
    stream = streamed(metric, SimpleNamespace(data_world_size=1, pass_on=lambda value, source: value))
    outputs = Outputs(predictions=torch.ones(4, 2), labels=torch.tensor([1, 2, 4, 8]))
    stream.take(Batch(None, outputs, held=4, counted=2))  # type: ignore[arg-type]
    stream.take(Batch(None, outputs, held=4, counted=0))  # type: ignore[arg-type]
    assert stream.compute() == {"sum": 3.0}
    assert [len(batch["labels"]) for batch in metric.given] == [2]  # a batch of nothing is not given at all


class TestStreamingAccuracy:
    def test_of_classes_of_tokens_and_of_nothing(self) -> None:
        metric = StreamingAccuracy("hits")
        assert math.isnan(metric.compute()["hits"])
        metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        assert metric.compute() == {"hits": 0.5}
        metric.update(torch.tensor([[[0.1, 0.9], [0.8, 0.2]]]), torch.tensor([[1, -100]]))
        assert metric.compute() == {"hits": 2 / 3}
        metric.update(torch.tensor([3, 4]), torch.tensor([3, 4]))
        assert metric.compute() == {"hits": 4 / 5}

    def test_merging_is_updating_with_both(self) -> None:
        generator = np.random.default_rng(0)
        batches = [(torch.tensor(generator.normal(size=(5, 3))), torch.tensor([0, 1, 2, -100, 1])) for _ in range(3)]
        alone, first, second = StreamingAccuracy(), StreamingAccuracy(), StreamingAccuracy()
        for batch in batches:
            alone.update(*batch)
        first.update(*batches[0])
        for batch in batches[1:]:
            second.update(*batch)
        first.merge(second)
        assert first.compute() == alone.compute()
