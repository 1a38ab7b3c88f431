"""Metrics that take the batches as they come: what they need does not grow with the data.

`compute_metrics` may be an object with `update` and `compute` in place of a function: one of torchmetrics, or any other
that follows `StreamingMetric`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from mainspring.evaluation.kept import Outputs, Rows
from mainspring.metrics import PADDING, map_tree

if TYPE_CHECKING:
    from typing_extensions import Self

    from mainspring.evaluation.batches import Batch


class StreamingMetric(Protocol):
    """What `compute_metrics` may be instead of a function.

    Two methods may be added. `merge(other)` takes the state of another process's metric in: each process then updates
    with its own batches alone, which is what large outputs need. Without it every process is given the gathered
    batches. `reset()` is called before each evaluation; without it, each gets a copy of the object that was passed.
    """

    def update(self, predictions: Any, labels: Any) -> None:
        """Take one batch in: tensors on the device, and keywords `inputs` and `losses` if `include_for_metrics` asks."""

    def compute(self) -> Mapping[str, Any]:
        """The metrics of all batches since the beginning."""


class StreamingAccuracy:
    """The share of labels that the largest logit, or the prediction itself, hits. Labels of -100 are left out.

    Counting stays on the device: nothing waits for it before `compute`.

    Args:
        name: What the metric is called.
    """

    def __init__(self, name: str = "accuracy") -> None:
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.hits: Tensor | int = 0
        self.total: Tensor | int = 0

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Take one batch in: logits of shape (..., classes) or classes of shape (...), and labels of shape (...)."""
        chosen = predictions.argmax(-1) if predictions.ndim > labels.ndim else predictions
        counted = labels != PADDING
        self.hits = self.hits + ((chosen == labels) & counted).sum()
        self.total = self.total + counted.sum()

    def merge(self, other: Self) -> None:
        """Take another process's counts in."""
        self.hits, self.total = int(self.hits) + int(other.hits), int(self.total) + int(other.total)

    def compute(self) -> dict[str, float]:
        """The share; NaN where nothing was counted."""
        total = int(self.total)
        return {self.name: int(self.hits) / total if total else float("nan")}


def is_streaming(metric: Any) -> bool:
    """Whether `compute_metrics` is an object that takes batches in. What can be called is a function to us.

    torchmetrics' objects can be called too, as all modules can.
    """
    has_both = all(callable(getattr(metric, name, None)) for name in ("update", "compute"))
    return has_both and (isinstance(metric, nn.Module) or not callable(metric))


def streamed(metric: Any, engine: Any) -> Streamed:
    """A metric at its beginning, with what makes its result that of all processes."""
    if callable(getattr(metric, "reset", None)):
        metric.reset()
    else:
        metric = copy.deepcopy(metric)
    if isinstance(metric, nn.Module):
        metric.to(engine.device)
    return _kind_of(metric)(metric, engine)


def _kind_of(metric: Any) -> type[Streamed]:
    if isinstance(metric, nn.Module) and any(hasattr(part, "sync_context") for part in metric.modules()):
        return Synchronising
    return Merging if callable(getattr(metric, "merge", None)) else Gathering


class Streamed:
    """A streaming metric in one evaluation, updated with what this process has of each batch."""

    needs_gathered = False

    def __init__(self, metric: StreamingMetric, engine: Any) -> None:
        self._metric = metric
        self._engine = engine
        self._fed = False

    def take(self, batch: Batch) -> None:
        """Take one batch in. Without predictions or labels there is nothing to measure."""
        if not batch.has_both:
            return
        self._fed = True
        if batch.counted:
            self._update(batch.own)

    def _update(self, outputs: Outputs) -> None:
        predictions, labels, inputs, losses = (map_tree(_plain, value) for value in outputs)
        extras = {"inputs": inputs, "losses": losses}
        update = cast("Callable[..., None]", self._metric.update)
        update(predictions, labels, **{name: value for name, value in extras.items() if value is not None})

    def compute(self) -> dict[str, Any]:
        """The metrics by name; none where there were no labels."""
        if not self._fed:
            return {}
        self._join()
        found: Any = self._metric.compute()
        named = dict(found) if isinstance(found, Mapping) else {type(self._metric).__name__: found}
        return {name: _value(value) for name, value in named.items()}

    def _join(self) -> None:
        """Make the metric's state that of all processes."""


class Synchronising(Streamed):
    """A metric whose `compute` brings the processes' states together by itself, as those of torchmetrics do."""


class Merging(Streamed):
    """A metric that can take another's state in."""

    def _join(self) -> None:
        own: Any = self._metric
        merged = self._engine.pass_on(own, source=0)
        for rank in range(1, self._engine.data_world_size):
            merged.merge(self._engine.pass_on(own, source=rank))
        self._metric = merged


class Gathering(Streamed):
    """A metric that can only be updated: every process gives it everything."""

    needs_gathered = True

    def take(self, batch: Batch) -> None:
        """Take one batch of all processes in."""
        if batch.has_both:
            self._fed = True
            self._update(batch.gathered)


def _plain(leaf: Any) -> Any:
    return leaf.items if isinstance(leaf, Rows) else leaf


def _value(value: Any) -> Any:
    """A result as logs hold it: one for each class becomes a list."""
    return value.tolist() if isinstance(value, torch.Tensor) else value
