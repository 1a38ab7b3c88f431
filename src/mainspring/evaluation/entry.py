"""`evaluate` and `predict`: the loop, with what stands before and after it."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

from mainspring.errors import OptionError, Problem
from mainspring.evaluation.output import OutputFile
from mainspring.metrics import EvalLoopOutput, PredictionOutput, speed_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mainspring.trainer import Trainer


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


def predict(
    trainer: Trainer,
    test_dataset: Any,
    ignore_keys: list[str] | None,
    prefix: str,
    output_file: str | os.PathLike[str] | None,
) -> PredictionOutput:
    """Predictions, labels and metrics of a data set; with `output_file`, the first two in files."""
    if output_file is None:
        return _predict(trainer, test_dataset, ignore_keys, prefix)
    if trainer.args.prediction_loss_only:
        raise _nothing_to_write(
            output_file, "prediction_loss_only=True leaves predictions out", "leave one of them out"
        )
    with OutputFile(output_file, writes=trainer.is_world_process_zero()) as output:
        trainer._output = output
        try:
            result = _predict(trainer, test_dataset, ignore_keys, prefix)
        finally:
            trainer._output = None
        output.finish(result)
        # Asked by all: the files are there for every process that goes on.
        is_written = trainer._engine.any(output.has_predictions)
    if not is_written:
        why = "there were no predictions to write: the data set is empty, or the model's output has nothing but a loss"
        raise _nothing_to_write(output_file, why, "look at what predict returns without it")
    return PredictionOutput(predictions=None, label_ids=None, metrics=result.metrics)


def _nothing_to_write(output_file: str | os.PathLike[str], why: str, fix: str) -> OptionError:
    return OptionError([Problem("output_file", os.fspath(output_file), why, fix)])


def _predict(trainer: Trainer, test_dataset: Any, ignore_keys: list[str] | None, prefix: str) -> PredictionOutput:
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
    steps = math.ceil(samples / (trainer.args.eval_batch_size * trainer._engine.data_world_size))
    metrics.update(speed_metrics(prefix, started, num_samples=samples, num_steps=steps))
    return metrics
