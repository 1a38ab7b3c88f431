"""`evaluate`, `predict` and the loop under them. It talks to the trainer's overridable methods and its engine only."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mainspring.metrics import (
    EvalLoopContainer,
    EvalLoopOutput,
    EvalPrediction,
    PredictionOutput,
    denumpify_detensorize,
    find_batch_size,
    has_length,
    speed_metrics,
)
from mainspring.utils.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from mainspring.trainer import Trainer

logger = get_logger(__name__)


def evaluate(trainer: Trainer, eval_dataset: Any, ignore_keys: list[str] | None, prefix: str) -> dict[str, float]:
    """Evaluate one data set, or each of a mapping of them; logs, tells the callbacks and returns the metrics."""
    chosen = trainer.eval_dataset if eval_dataset is None else eval_dataset
    if isinstance(chosen, dict):
        return _evaluate_each(trainer, chosen, eval_dataset is not None, ignore_keys, prefix)
    loader = trainer.get_eval_dataloader(eval_dataset)
    started = time.time()
    output = trainer.evaluation_loop(
        loader,
        description="Evaluation",
        # Without a metric nobody reads the predictions: the loss is enough.
        prediction_loss_only=True if trainer.compute_metrics is None else None,
        ignore_keys=ignore_keys,
        metric_key_prefix=prefix,
    )
    metrics = _with_speed(trainer, output, prefix, started)
    trainer.log(metrics)
    trainer._fire("on_evaluate", metrics)
    return metrics


def _evaluate_each(
    trainer: Trainer, datasets: Mapping[str, Any], given: bool, ignore_keys: list[str] | None, prefix: str
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, dataset in datasets.items():
        metrics.update(
            trainer.evaluate(
                eval_dataset=dataset if given else name,
                ignore_keys=ignore_keys,
                metric_key_prefix=f"{prefix}_{name}",
            )
        )
    return metrics


def predict(trainer: Trainer, test_dataset: Any, ignore_keys: list[str] | None, prefix: str) -> PredictionOutput:
    """Predictions, labels and metrics of a data set."""
    loader = trainer.get_test_dataloader(test_dataset)
    started = time.time()
    output = trainer.evaluation_loop(
        loader, description="Prediction", ignore_keys=ignore_keys, metric_key_prefix=prefix
    )
    metrics = _with_speed(trainer, output, prefix, started)
    trainer._fire("on_predict", metrics)
    return PredictionOutput(predictions=output.predictions, label_ids=output.label_ids, metrics=metrics)


def _with_speed(trainer: Trainer, output: EvalLoopOutput, prefix: str, started: float) -> dict[str, float]:
    metrics = output.metrics
    assert metrics is not None
    # Preparing the model is not part of the evaluation's speed.
    started += metrics.get(f"{prefix}_model_preparation_time", 0.0)
    samples = output.num_samples or 0
    steps = math.ceil(samples / (trainer.args.eval_batch_size * trainer.args.world_size))
    metrics.update(speed_metrics(prefix, started, num_samples=samples, num_steps=steps))
    return metrics


class LossMean:
    """The evaluation loss: a mean over label tokens, on the device.

    Each batch's loss is a mean over its own items; weighting it by their number makes the result the mean over all
    items, however they fall into batches and processes.
    """

    def __init__(self, device: torch.device, keep_finite: bool) -> None:
        precise = torch.float32 if device.type == "mps" else torch.float64
        self._sum = torch.zeros((), dtype=precise, device=device)
        self._weight = torch.zeros((), dtype=precise, device=device)
        self._keep_finite = keep_finite
        self.counted = False

    def add(self, loss: Tensor, scale: Tensor | float, weight: Tensor | float) -> None:
        """Add a batch: `loss * scale` is its sum over items, `weight` their number in this process."""
        self.counted = True
        loss = loss.to(self._sum)
        part, weight = loss * scale, torch.as_tensor(weight).to(self._sum)
        if self._keep_finite:
            finite = torch.isfinite(loss)
            part, weight = torch.where(finite, part, 0.0), torch.where(finite, weight, 0.0)
        self._sum += torch.where(weight > 0, part, 0.0)
        self._weight += weight

    def value(self, engine: Any) -> float:
        """The mean over all processes; NaN where nothing was counted."""
        total, weight = engine.sum(self._sum).item(), engine.sum(self._weight).item()
        return float(total / weight) if weight else math.nan


@dataclass
class _Kept:
    """What one evaluation holds on to."""

    losses: EvalLoopContainer
    predictions: EvalLoopContainer
    labels: EvalLoopContainer
    inputs: EvalLoopContainer

    @classmethod
    def empty(cls, concat: bool) -> _Kept:
        return cls(*(EvalLoopContainer(concat, padding_index=-100) for _ in range(4)))

    def to_host(self) -> None:
        for container in vars(self).values():
            container.to_cpu_and_numpy()


class EvaluationLoop:
    """One pass over an evaluation loader."""

    def __init__(
        self, trainer: Trainer, loader: Any, prediction_loss_only: bool, ignore_keys: list[str] | None, keep: bool
    ) -> None:
        self.trainer = trainer
        self.args = trainer.args
        self.loader = loader
        self.loss_only = prediction_loss_only
        self.ignore_keys = ignore_keys
        self.keep = keep
        self.kept = _Kept.empty(self.args.eval_do_concat_batches)
        self.keep_finite = self.args.logging_nan_inf_filter and trainer._own.finite_evaluations
        self.mean = LossMean(trainer._engine.device, self.keep_finite)
        self.by_token = trainer._evaluates_by_token()
        self.saw_loss = False
        self.observed = 0
        self.metrics: dict[str, Any] | None = None

    def run(self, model: nn.Module) -> None:
        """Go through the batches."""
        engine, args = self.trainer._engine, self.args
        for index, (inputs, rows) in enumerate(engine.evaluation_batches(self.loader)):
            held = find_batch_size(inputs) or 0
            self.observed += held if rows is None else sum(rows)
            self._one_batch(model, inputs, held, counts=rows is None or rows[engine.rank] > 0)
            self.trainer._fire("on_prediction_step")
            self.trainer._heed_stop_in_evaluation()
            if args.eval_accumulation_steps is not None and (index + 1) % args.eval_accumulation_steps == 0:
                self.kept.to_host()

    def _one_batch(self, model: nn.Module, inputs: Any, rows: int, counts: bool) -> None:
        trainer = self.trainer
        trainer._eval_items = None
        loss, logits, labels = trainer.prediction_step(model, inputs, self.loss_only, ignore_keys=self.ignore_keys)
        main_input = self._main_input(inputs) if "inputs" in self.args.include_for_metrics else None
        losses = self._count_loss(loss, rows, counts)
        logits, labels, main_input = self._gather(logits, labels, main_input)
        if self.args.batch_eval_metrics:
            self._batch_metrics(losses, logits, labels, main_input)
        if self.keep:
            for container, value in (
                (self.kept.predictions, logits),
                (self.kept.labels, labels),
                (self.kept.inputs, main_input),
            ):
                if value is not None:
                    container.add(value)

    def _main_input(self, inputs: Any) -> Any:
        name = getattr(self.trainer.model, "main_input_name", "input_ids")
        if name not in inputs:
            raise ValueError(
                f"include_for_metrics=['inputs']: the batch has no {name!r}, only {', '.join(inputs)}; set "
                "main_input_name on the model class"
            )
        return self.trainer._prepare_input(inputs[name])

    def _count_loss(self, loss: Tensor | None, rows: int, counts: bool) -> Tensor | None:
        """Take the batch's loss into the mean; per-sample losses are kept where somebody reads them."""
        if loss is None:
            return None
        self.saw_loss = True
        counted = self.trainer._eval_items if self.by_token else None
        if counted is not None:
            items, scale = counted
            self.mean.add(loss, scale, items if counts else 0)
            if "loss" not in self.args.include_for_metrics:
                return None
        gathered: Tensor = self.trainer.gather_function(loss.repeat(rows or 1))
        self.kept.losses.add(gathered)
        return gathered

    def _gather(self, logits: Any, labels: Any, main_input: Any) -> tuple[Any, Any, Any]:
        """Bring outputs of all processes together, padded to the longest on dimension 1."""
        trainer = self.trainer

        def pad(value: Any) -> Any:
            if trainer._engine.world_size == 1:
                return value
            return trainer.accelerator.pad_across_processes(value, dim=1, pad_index=-100)

        if main_input is not None:
            main_input = trainer.gather_function(pad(main_input))
        if labels is not None:
            labels = pad(labels)
        if logits is not None:
            logits = pad(logits)
            if trainer.preprocess_logits_for_metrics is not None:
                logits = trainer.preprocess_logits_for_metrics(logits, labels)
            logits = trainer.gather_function(logits)
        if labels is not None:
            labels = trainer.gather_function(labels)
        return logits, labels, main_input

    def _batch_metrics(self, losses: Any, logits: Any, labels: Any, inputs: Any) -> None:
        compute = self.trainer.compute_metrics
        if compute is None or logits is None or labels is None:
            return
        prediction = self._asked_for(logits, labels, losses, inputs)
        is_last = self.trainer.accelerator.gradient_state.end_of_dataloader
        self.metrics = compute(prediction, compute_result=is_last)

    def _asked_for(self, predictions: Any, labels: Any, losses: Any, inputs: Any) -> EvalPrediction:
        """What `compute_metrics` is given: losses and inputs only where `include_for_metrics` names them."""
        wanted = self.args.include_for_metrics
        return EvalPrediction(
            predictions=predictions,
            label_ids=labels,
            losses=losses if "loss" in wanted else None,
            inputs=inputs if "inputs" in wanted else None,
        )

    def finish(self, prefix: str, num_samples: int) -> EvalLoopOutput:
        """Compute the metrics and hand out the arrays."""
        losses, predictions = self.kept.losses.get_arrays(), self.kept.predictions.get_arrays()
        labels, inputs = self.kept.labels.get_arrays(), self.kept.inputs.get_arrays()
        metrics = self.metrics or {}
        compute = self.trainer.compute_metrics
        if compute is not None and predictions is not None and labels is not None and not self.args.batch_eval_metrics:
            metrics = compute(self._asked_for(predictions, labels, losses, inputs))
        metrics = denumpify_detensorize(metrics)
        if self.saw_loss:
            metrics[f"{prefix}_loss"] = self._loss(losses)
        if self.trainer._preparation_time is not None:
            metrics[f"{prefix}_model_preparation_time"] = self.trainer._preparation_time
        metrics = {key if key.startswith(f"{prefix}_") else f"{prefix}_{key}": value for key, value in metrics.items()}
        return EvalLoopOutput(predictions=predictions, label_ids=labels, metrics=metrics, num_samples=num_samples)

    def _loss(self, losses: Any) -> float:
        if losses is None or self.mean.counted:
            return self.mean.value(self.trainer._engine)
        array = np.concatenate(losses) if isinstance(losses, list) else np.asarray(losses)
        finite = np.isfinite(array)
        if self.keep_finite and finite.any():
            array = array[finite]
        return float(array.mean().item())


def evaluation_loop(
    trainer: Trainer,
    loader: Any,
    description: str,
    prediction_loss_only: bool | None,
    ignore_keys: list[str] | None,
    prefix: str,
) -> EvalLoopOutput:
    """Run the model over `loader` and return predictions, labels and metrics. Works with and without labels."""
    args = trainer.args
    loss_only = args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
    model = trainer._model_for_evaluation()
    _announce(trainer, loader, description)
    model.eval()
    if callable(getattr(trainer.optimizer, "eval", None)):
        trainer.optimizer.eval()  # schedule-free optimizers swap in averaged weights
    trainer.callback_handler.eval_dataloader = loader
    keep = not args.batch_eval_metrics or description == "Prediction"
    evaluation = EvaluationLoop(trainer, loader, loss_only, ignore_keys, keep)
    evaluation.run(model)
    return evaluation.finish(prefix, _num_samples(trainer, loader, evaluation.observed))


def _announce(trainer: Trainer, loader: Any, description: str) -> None:
    samples = trainer.num_examples(loader) if has_length(loader) else "unknown"
    logger.info("%s: %s examples, batch size %d", description, samples, trainer.args.eval_batch_size)


def _num_samples(trainer: Trainer, loader: Any, observed: int) -> int:
    dataset = getattr(loader, "dataset", None)
    if has_length(dataset):
        known = len(dataset)
    elif has_length(loader):
        known = trainer.num_examples(loader)
    else:
        known = observed
    return known or observed
