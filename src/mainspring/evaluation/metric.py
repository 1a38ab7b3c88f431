"""The forms of `compute_metrics`: none, a function of all arrays, a function of each batch, a streaming metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mainspring.evaluation.kept import Outputs
from mainspring.evaluation.streaming import Streamed, is_streaming, streamed
from mainspring.metrics import EvalPrediction, denumpify_detensorize

if TYPE_CHECKING:
    from mainspring.evaluation.batches import Batch
    from mainspring.trainer import Trainer


class NoMetric:
    """Nobody asked for metrics.

    Attributes:
        needs_gathered: Whether `take` asks for the outputs of all processes.
        needs_arrays: Whether `of_all` asks for the arrays of all batches.
    """

    needs_gathered = False
    needs_arrays = False

    def take(self, batch: Batch) -> None:
        """Take one batch in."""

    def of_all(self, arrays: Outputs) -> dict[str, Any]:
        """The metrics, of the arrays of all batches."""
        return {}


class OfAll(NoMetric):
    """A function of everything at once."""

    needs_arrays = True

    def __init__(self, function: Any, trainer: Trainer) -> None:
        self._function = function
        self._trainer = trainer

    def of_all(self, arrays: Outputs) -> dict[str, Any]:
        """The function's answer, which the main process asks for and tells the others."""
        if not self._trainer._own.metric_once:
            return self._answer(arrays)
        answer: dict[str, Any] = self._trainer._by_main_process(lambda: self._answer(arrays))
        return answer

    def _answer(self, arrays: Outputs) -> dict[str, Any]:
        """None without predictions or labels."""
        if arrays.predictions is None or arrays.labels is None:
            return {}
        found: dict[str, Any] = denumpify_detensorize(self._function(_prediction(arrays)))
        return found


class OfEach(NoMetric):
    """A function of each batch, which answers for all of them at the last one."""

    needs_gathered = True

    def __init__(self, function: Any, trainer: Trainer) -> None:
        self._function = function
        self._trainer = trainer
        self._found: dict[str, Any] = {}

    def take(self, batch: Batch) -> None:
        """Call the function."""
        if batch.has_both:
            is_last = self._trainer.accelerator.gradient_state.end_of_dataloader
            self._found = self._function(_prediction(batch.gathered), compute_result=is_last)

    def of_all(self, arrays: Outputs) -> dict[str, Any]:
        """The answer to the last call."""
        return self._found or {}


class OfStream(NoMetric):
    """A streaming metric."""

    def __init__(self, metric: Streamed) -> None:
        self._metric = metric
        self.needs_gathered = metric.needs_gathered

    def take(self, batch: Batch) -> None:
        """Update the metric."""
        self._metric.take(batch)

    def of_all(self, arrays: Outputs) -> dict[str, Any]:
        """What the metric computes."""
        return self._metric.compute()


def metric_of(trainer: Trainer) -> NoMetric:
    """The metric of one evaluation."""
    function = trainer.compute_metrics
    if function is None:
        return NoMetric()
    if trainer.args.batch_eval_metrics:
        return OfEach(function, trainer)
    return OfStream(streamed(function, trainer._engine)) if is_streaming(function) else OfAll(function, trainer)


def _prediction(outputs: Outputs) -> EvalPrediction:
    return EvalPrediction(
        predictions=outputs.predictions, label_ids=outputs.labels, inputs=outputs.inputs, losses=outputs.losses
    )
