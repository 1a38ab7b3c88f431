"""Grouped setters: they set what the reference's set, check what the constructor checks, and can be chained."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import transformers

from mainspring import TrainingArguments
from mainspring.arguments.enums import IntervalStrategy
from mainspring.errors import NotAvailableError, OptionError

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("set_training", {}),
    ("set_training", {"learning_rate": 1e-4, "batch_size": 32, "num_epochs": 2, "activation_checkpointing": True}),
    ("set_training", {"gradient_checkpointing": True}),
    ("set_evaluate", {}),
    ("set_evaluate", {"strategy": "steps", "steps": 100, "accumulation_steps": 2, "delay": 3, "loss_only": True}),
    ("set_testing", {"batch_size": 32, "loss_only": True}),
    ("set_save", {"strategy": "epoch", "total_limit": 2}),
    ("set_save", {"strategy": "best"}),
    ("set_logging", {"strategy": "steps", "steps": 100, "first_step": True, "report_to": []}),
    ("set_logging", {"strategy": "no", "steps": 0, "level": "info", "report_to": []}),
    ("set_optimizer", {}),
    ("set_optimizer", {"name": "adafactor", "beta1": 0.8, "args": "a=1"}),
    ("set_lr_scheduler", {"name": "cosine", "warmup_steps": 0.05, "max_steps": 10}),
    ("set_dataloader", {"train_batch_size": 16, "eval_batch_size": 64, "num_workers": 2, "sampler_seed": 7}),
]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("name", "keywords"), CALLS, ids=str)
def test_a_setter_sets_what_the_references_sets(name: str, keywords: dict[str, Any]) -> None:
    changes = []
    for cls in (TrainingArguments, transformers.TrainingArguments):
        args = cls("out", use_cpu=True)
        before = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
        assert getattr(args, name)(**keywords) is args
        changes.append({n: getattr(args, n) for n, value in before.items() if getattr(args, n) != value})
    ours, theirs = changes
    if theirs.get("eval_delay", 0) is None:  # there, an evaluation would then raise
        del theirs["eval_delay"]
    assert ours == theirs


def test_setters_chain() -> None:
    args = TrainingArguments("out").set_training(learning_rate="1e-4").set_evaluate("epoch").set_save("epoch")
    assert (args.learning_rate, args.do_train, args.do_eval) == (1e-4, True, True)
    assert args.eval_strategy is IntervalStrategy.EPOCH


@pytest.mark.parametrize("name", ["set_evaluate", "set_save", "set_logging"])
def test_an_interval_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="steps=0"):
        getattr(TrainingArguments("out"), name)(strategy="steps", steps=0)


@pytest.mark.parametrize(
    ("name", "keywords", "error", "options"),
    [
        ("set_training", {"learning_rate": -1, "seed": "x"}, OptionError, {"learning_rate", "seed"}),
        ("set_save", {"strategy": "sometimes"}, OptionError, {"save_strategy"}),
        ("set_optimizer", {"name": "lomo"}, NotAvailableError, {"optim"}),
        ("set_push_to_hub", {"model_id": "me/model"}, NotAvailableError, {"push_to_hub", "hub_model_id"}),
        ("set_logging", {"report_to": "wandb"}, NotAvailableError, {"report_to"}),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_changed(
    name: str, keywords: dict[str, Any], error: type[OptionError], options: set[str]
) -> None:
    args, untouched = TrainingArguments("out"), TrainingArguments("out")
    with pytest.raises(error) as raised:
        getattr(args, name)(**keywords)
    assert {problem.option for problem in raised.value.problems} == options
    assert args == untouched
