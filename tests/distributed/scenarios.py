"""What two processes and one process with the doubled batch must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tests.helpers import data
from tests.parity.cases.saving import stop_and_resume
from tests.parity.harness import Case, train
from tests.parity.tasks import EVALUATES, accuracy, classifier, language_model, mean_error, regression, with_model

PLAIN = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.5, "num_train_epochs": 2}


@dataclass(frozen=True)
class Scenario:
    """One run under two processes.

    Attributes:
        case: Model, data, options as each of the two processes gets them.
        alone: Options that make one process do the same work; None where there is no such run, and `why` says so.
        against_reference: Whether the reference, launched alike, must give the same bits.
        default_numbers: Run with Mainspring's own defaults instead of the reference's numbers.
        why: The reason for an exception.
    """

    case: Case
    alone: Mapping[str, Any] | None = field(default_factory=lambda: {"per_device_train_batch_size": 8})
    against_reference: bool = True
    default_numbers: bool = False
    why: str = ""


def _case(name: str, task: Any, options: Mapping[str, Any], drive: Any = train) -> Case:
    return Case(name, task, {**PLAIN, **options}, drive=drive, why="compared with one process instead")


def _predict(side: Any, build: Any) -> tuple[Any, Any]:
    trainer = build()
    trainer.train()
    return trainer, trainer.predict(data.Items(data.points(11, 3)))


def _predict_sixteen(side: Any, build: Any) -> tuple[Any, Any]:
    trainer = build()
    trainer.train()
    return trainer, trainer.predict(data.Items(data.points(16, 3)))


EVERY = {"save_strategy": "steps", "save_steps": 1}
DOUBLE_EVAL = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
EXACT = "the evaluation loss is exact by default, whatever the batches; the reference's is not"
CYCLES = "the reference fills the last batch of an epoch with samples from its start"

BUDGET = {
    "train_sampling_strategy": "token_budget",
    "max_tokens_per_batch": 40,
    "gradient_accumulation_steps": 100,
    "per_device_train_batch_size": 8,
}
"""One update an epoch, over all samples: the same however many processes share its batches."""

SIZED = data.Items([{**item, "length": 3 + 5 * place % 12} for place, item in enumerate(data.points(23))])
"""A regression that is to be batched by lengths of its own."""

RECOMPUTES = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
"""Recomputing in torch's older way, whose parameters the wrapper cannot find in the graph."""


def _with_layers(model: Any) -> Any:
    model.norm = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
    return model


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(_case("regression", regression(samples=32), {})),
    Scenario(_case("regression_adamw", regression(samples=32), {"optim": "adamw_torch_fused", "learning_rate": 1e-2})),
    Scenario(_case("accumulation", regression(samples=40), {"gradient_accumulation_steps": 2})),
    Scenario(_case("uneven_tokens", language_model(samples=24), {"gradient_accumulation_steps": 2})),
    Scenario(_case("uneven_tokens_smoothed", language_model(samples=24), {"label_smoothing_factor": 0.2})),
    Scenario(_case("drop_last", regression(samples=21), {"dataloader_drop_last": True})),
    Scenario(_case("sequential", regression(samples=32), {"train_sampling_strategy": "sequential"})),
    Scenario(
        _case(
            "grouped_by_length",
            language_model(samples=24),
            {"train_sampling_strategy": "group_by_length", "gradient_accumulation_steps": 2},
        ),
        alone=None,
        why="how far apart samples are sorted follows from the batch size",
    ),
    Scenario(
        _case(
            "rebalanced",
            language_model(samples=21),
            {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2},
        ),
        alone=None,
        why="the last update is filled up for two processes",
    ),
    Scenario(
        _case("budget_of_tokens", language_model(samples=23), BUDGET),
        {},
        against_reference=False,
        default_numbers=True,
        why="the reference has no such batches",
    ),
    Scenario(
        _case("budget_of_samples", regression(samples=23, train_dataset=SIZED), BUDGET),
        {},
        against_reference=False,
        default_numbers=True,
        why="the reference has no such batches",
    ),
    Scenario(_case("recomputed", language_model(samples=24), RECOMPUTES)),
    Scenario(
        _case("recomputed_layers", with_model(regression(samples=32), _with_layers), RECOMPUTES),
        {"per_device_train_batch_size": 8, "gradient_checkpointing": False, "gradient_checkpointing_kwargs": None},
        against_reference=False,
        why="the reference recomputes no plain module",
    ),
    Scenario(
        _case("noisy", language_model(samples=24), {"neftune_noise_alpha": 5.0}),
        alone=None,
        why="each process draws its own noise",
    ),
    Scenario(_case("uneven_batches", regression(0.1, samples=21), {}), alone=None, why=CYCLES),
    Scenario(
        _case("dropout_bf16", classifier(0.1, samples=24), {"bf16": True, "optim": "adamw_torch"}),
        alone=None,
        why="each process drops other units",
    ),
    Scenario(_case("stream", regression(train_dataset=data.Stream(data.points(32))), {"max_steps": 6})),
    Scenario(
        _case("predict", regression(compute_metrics=mean_error), {"max_steps": 2}, _predict),
        DOUBLE_EVAL,
        against_reference=False,
        default_numbers=True,
        why=EXACT,
    ),
    Scenario(
        _case("predict_full_batches", regression(compute_metrics=mean_error), {"max_steps": 2}, _predict_sixteen),
        DOUBLE_EVAL,
    ),
    Scenario(
        _case(
            "evaluate",
            classifier(compute_metrics=accuracy, eval_dataset=data.Items(data.sentences(11, 9)), samples=32),
            dict(EVALUATES),
        ),
        DOUBLE_EVAL,
        against_reference=False,
        default_numbers=True,
        why=EXACT,
    ),
    Scenario(
        _case(
            "evaluate_tokens", language_model(samples=24, eval_dataset=data.Items(data.ragged_text(11, 9))), EVALUATES
        ),
        DOUBLE_EVAL,
        against_reference=False,
        default_numbers=True,
        why=EXACT,
    ),
    Scenario(
        _case(
            "evaluate_as_the_reference",
            classifier(compute_metrics=accuracy, eval_dataset=data.Items(data.sentences(11, 9)), samples=32),
            dict(EVALUATES),
        ),
        alone=None,
        why=EXACT,
    ),
    Scenario(
        _case("predict_as_the_reference", regression(compute_metrics=mean_error), {"max_steps": 2}, _predict),
        alone=None,
        why=EXACT,
    ),
    Scenario(
        _case(
            "best_model",
            regression(samples=32, compute_metrics=mean_error, eval_dataset=data.Items(data.points(8, 9))),
            {
                **EVALUATES,
                "save_strategy": "steps",
                "save_steps": 2,
                "load_best_model_at_end": True,
                "learning_rate": 0.3,
            },
        ),
        DOUBLE_EVAL,
    ),
    Scenario(_case("saved", regression(0.1, samples=40), EVERY), alone=None, why="compared with the resumed run"),
    Scenario(
        _case("resumed", regression(0.1, samples=40), EVERY, stop_and_resume(4)),
        alone=None,
        why="compared with `saved`",
    ),
)
