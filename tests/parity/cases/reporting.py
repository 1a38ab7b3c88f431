"""What comes out: logs, evaluations, predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from tests.helpers import data, models
from tests.helpers.sides import Side
from tests.parity.harness import Build, Case, Task
from tests.parity.tasks import (
    EVALUATES,
    LM,
    BatchedAccuracy,
    accuracy,
    classifier,
    language_model,
    mean_error,
    poisoned,
    regression,
    with_inputs,
)


def reporting() -> list[Case]:
    """Which updates are logged, and with what."""
    return [
        Case("logging_share", regression(), {"logging_steps": 0.15}, {"logging_steps": 1}),
        Case("logging_window", language_model(), {**LM, "logging_steps": 3}, {"logging_steps": 2}),
        Case(
            "logging_first_step",
            regression(),
            {"logging_steps": 4, "logging_first_step": True},
            {"logging_first_step": False},
        ),
        Case("logging_by_epoch", regression(), {"logging_strategy": "epoch"}, {"logging_strategy": "steps"}),
        Case(
            "nan_hidden",
            regression(train_dataset=data.Items(poisoned(data.points(22), 9))),
            {"logging_nan_inf_filter": True, "logging_steps": 2},
            {"logging_nan_inf_filter": False},
        ),
        Case(
            "nan_shown",
            regression(train_dataset=data.Items(poisoned(data.points(22), 9))),
            {"logging_nan_inf_filter": False, "logging_steps": 2},
            {"logging_nan_inf_filter": True},
        ),
        *(
            Case(
                f"tokens_seen_{which}",
                language_model(),
                {**LM, "include_num_input_tokens_seen": which},
                {"include_num_input_tokens_seen": "no"},
            )
            for which in ("all", "non_padding")
        ),
    ]


def evaluation() -> list[Case]:
    """Evaluation during training, prediction after it."""
    two_sets = {"near": data.Items(data.points(6, 5)), "far": data.Items(data.points(9, 6))}
    off = {"eval_strategy": "no"}
    unlabelled = data.Items(data.without(data.sentences(10, 99), "label"))
    per_batch = {"batch_eval_metrics": True, **EVALUATES}
    extras = {"include_for_metrics": ["inputs", "loss"], **EVALUATES}
    half = {"eval_strategy": "steps", "eval_steps": 0.25, "eval_delay": 7, "eval_on_start": True}
    lists = {"eval_do_concat_batches": False, **EVALUATES}
    return [
        Case("eval_every_n_with_metrics", classifier(0.1, compute_metrics=accuracy), {**EVALUATES}, off),
        Case("eval_lm", language_model(0.1), {**LM, **EVALUATES, "gradient_accumulation_steps": 3}, off),
        Case(
            "eval_uneven_batches",
            regression(compute_metrics=mean_error),
            {**EVALUATES, "per_device_eval_batch_size": 3},
            off,
        ),
        Case("eval_share_delay_and_start", regression(), half, {"eval_delay": 0}),
        Case("eval_dict_of_sets", regression(0.1, eval_dataset=two_sets), dict(EVALUATES), off),
        Case("eval_without_labels", classifier(0.1, eval_dataset=unlabelled), dict(EVALUATES), off),
        Case("eval_loss_only", classifier(compute_metrics=accuracy), {**EVALUATES, "prediction_loss_only": True}, off),
        Case(
            "eval_accumulation",
            language_model(compute_metrics=_token_accuracy),
            {**EVALUATES, "eval_accumulation_steps": 1},
            off,
        ),
        Case("eval_preprocessed_logits", _with_argmax_preprocessing(), dict(EVALUATES), off),
        Case(
            "eval_batched_metrics",
            with_inputs(classifier(), lambda side: {"compute_metrics": BatchedAccuracy()}),
            per_batch,
            off,
        ),
        Case("eval_inputs_and_losses", classifier(compute_metrics=_metrics_of_everything), extras, off),
        Case("eval_lists_of_batches", language_model(compute_metrics=_number_of_batches), lists, off),
        Case(
            "eval_full_bf16",
            classifier(compute_metrics=accuracy),
            {"bf16_full_eval": True},
            {"bf16_full_eval": False},
            drive=_only_evaluate,
        ),
        Case(
            "eval_iterable",
            regression(eval_dataset=data.Stream(data.points(10, 99)), compute_metrics=mean_error),
            dict(EVALUATES),
            off,
        ),
        Case("predict", language_model(), {**LM, "max_steps": 3}, {"max_steps": 2}, drive=_train_and_predict),
        Case(
            "predict_tuple_outputs",
            regression(outputs=models.loss_and_prediction_tuple),
            {},
            {"seed": 1},
            drive=_train_and_predict,
        ),
    ]


def _token_accuracy(prediction: Any) -> dict[str, float]:
    guesses, truth = np.argmax(prediction.predictions, -1)[:, :-1], prediction.label_ids[:, 1:]
    return {"accuracy": float((guesses == truth)[truth != -100].mean())}


def _with_argmax_preprocessing() -> Task:
    def largest(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.argmax(-1)

    def hits(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}

    return classifier(compute_metrics=hits, preprocess_logits_for_metrics=largest)


def _metrics_of_everything(prediction: Any) -> dict[str, float]:
    return {
        "largest_input": float(np.max(prediction.inputs)),
        "mean_loss": float(np.mean(prediction.losses)),
        **accuracy((prediction.predictions, prediction.label_ids)),
    }


def _number_of_batches(prediction: Any) -> dict[str, float]:
    return {"batches": float(len(prediction.predictions)), "shape": float(prediction.predictions[0].shape[1])}


def _only_evaluate(side: Side, build: Build) -> tuple[Any, Any]:
    trainer = build()
    return trainer, trainer.evaluate()


def _train_and_predict(side: Side, build: Build) -> tuple[Any, Any]:
    trainer = build()
    trainer.train()
    return trainer, trainer.predict(trainer.eval_dataset)
