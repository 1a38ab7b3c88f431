"""Grouped setters: they set what the reference's set, check what the constructor checks, and can be chained."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import warnings
from typing import Any

import pytest
import transformers

from mainspring import TrainingArguments
from mainspring.arguments import setters
from mainspring.arguments.enums import IntervalStrategy
from mainspring.arguments.spellings import RENAMED
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


OLDER_CALLS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("set_training", {}, {"do_train": True}),
    (
        "set_training",
        {
            "learning_rate": 1e-4,
            "batch_size": 32,
            "weight_decay": 0.1,
            "num_epochs": 2,
            "max_steps": 7,
            "gradient_accumulation_steps": 4,
            "seed": 7,
            "gradient_checkpointing": True,
        },
        {
            "do_train": True,
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 32,
            "weight_decay": 0.1,
            "num_train_epochs": 2,
            "max_steps": 7,
            "gradient_accumulation_steps": 4,
            "seed": 7,
            "gradient_checkpointing": True,
        },
    ),
    ("set_evaluate", {}, {"eval_steps": 500}),
    (
        "set_evaluate",
        {"strategy": "steps", "steps": 100},
        {"do_eval": True, "evaluation_strategy": "steps", "eval_steps": 100},
    ),
    (
        "set_evaluate",
        {
            "strategy": "epoch",
            "batch_size": 4,
            "accumulation_steps": 2,
            "delay": 3.0,
            "loss_only": True,
            "jit_mode": False,
        },
        {
            "do_eval": True,
            "evaluation_strategy": "epoch",
            "prediction_loss_only": True,
            "per_device_eval_batch_size": 4,
            "eval_accumulation_steps": 2,
            "eval_delay": 3.0,
            "eval_steps": 500,
        },
    ),
    ("set_testing", {}, {"do_predict": True}),
    (
        "set_testing",
        {"batch_size": 32, "loss_only": True, "jit_mode": False},
        {"do_predict": True, "prediction_loss_only": True, "per_device_eval_batch_size": 32},
    ),
    ("set_save", {}, {}),
    ("set_save", {"strategy": "steps", "steps": 100}, {"save_steps": 100}),
    ("set_save", {"strategy": "epoch", "total_limit": 2}, {"save_strategy": "epoch", "save_total_limit": 2}),
    (
        "set_logging",
        {},
        {"log_level_replica": "passive", "log_on_each_node": False, "logging_nan_inf_filter": False},
    ),
    (
        "set_logging",
        {"strategy": "no", "steps": 0, "level": "info", "on_each_node": True},
        {
            "log_level": "info",
            "log_level_replica": "passive",
            "logging_strategy": "no",
            "logging_steps": 0,
            "logging_nan_inf_filter": False,
        },
    ),
    (
        "set_logging",
        {
            "strategy": "epoch",
            "report_to": "none",
            "level": "info",
            "first_step": True,
            "nan_inf_filter": True,
            "on_each_node": True,
            "replica_level": "error",
        },
        {"log_level": "info", "log_level_replica": "error", "logging_strategy": "epoch", "logging_first_step": True},
    ),
    ("set_optimizer", {"name": "adamw_torch", "beta1": 0.8}, {"optim": "adamw_torch", "adam_beta1": 0.8}),
    (
        "set_optimizer",
        {"name": "adafactor", "weight_decay": 0.1, "beta2": 0.99, "epsilon": 1e-6, "args": "a=1"},
        {"weight_decay": 0.1, "adam_beta2": 0.99, "adam_epsilon": 1e-6, "optim": "adafactor", "optim_args": "a=1"},
    ),
    ("set_lr_scheduler", {}, {}),
    (
        "set_lr_scheduler",
        {"name": "cosine", "warmup_ratio": 0.05},
        {"lr_scheduler_type": "cosine", "warmup_ratio": 0.05},
    ),
    (
        "set_lr_scheduler",
        {"num_epochs": 2.0, "max_steps": 9, "warmup_ratio": 0.5, "warmup_steps": 3},
        {"num_train_epochs": 2.0, "max_steps": 9, "warmup_steps": 3},  # the share did nothing beside the number
    ),
    (
        "set_dataloader",
        {
            "train_batch_size": 16,
            "eval_batch_size": 64,
            "drop_last": True,
            "num_workers": 2,
            "pin_memory": False,
            "persistent_workers": True,
            "ignore_data_skip": True,
            "sampler_seed": 7,
        },
        {
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 64,
            "data_seed": 7,
            "dataloader_drop_last": True,
            "dataloader_num_workers": 2,
            "dataloader_pin_memory": False,
            "dataloader_persistent_workers": True,
            "ignore_data_skip": True,
        },
    ),
]
"""Calls of version 4.37.2, and the options that they changed there, recorded from arguments made with
`report_to="none"`. Left out is `eval_delay=None`, with which an evaluation would then raise."""

SAME_AS = {
    **RENAMED,
    "warmup_ratio": "warmup_steps",
    "gradient_checkpointing": "activation_checkpointing",
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("name", "keywords", "changes"), OLDER_CALLS, ids=str)
def test_a_setter_sets_what_that_of_the_older_generation_set(
    name: str, keywords: dict[str, Any], changes: dict[str, Any]
) -> None:
    args = TrainingArguments("out", report_to="none", optim="adamw_torch_fused")
    before = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    assert getattr(args, name)(**keywords) is args
    assert {option: getattr(args, option) for option in changes} == changes
    changed = {option for option, value in before.items() if getattr(args, option) != value}
    assert changed - {"gradient_checkpointing"} == {SAME_AS.get(option, option) for option in changes}


def test_what_only_the_older_generation_took_is_said() -> None:
    args = TrainingArguments("out")
    with pytest.warns(FutureWarning, match="^warmup_ratio is now warmup_steps") as caught:
        args.set_lr_scheduler(name="cosine", warmup_ratio=0.05)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(FutureWarning, match="^warmup_ratio is now warmup_steps"):
        assert args.warmup_ratio == args.warmup_steps == 0.05
    with pytest.warns(FutureWarning), pytest.raises(OptionError, match=r"^warmup_ratio=1\.5: is no share"):
        args.set_lr_scheduler(warmup_ratio=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args.set_evaluate(jit_mode=False).set_testing(jit_mode=False).set_lr_scheduler()


@pytest.mark.parametrize("name", ["set_evaluate", "set_testing"])
def test_tracing_is_refused_as_by_the_constructor(name: str) -> None:
    args, untouched = TrainingArguments("out"), TrainingArguments("out")
    with pytest.raises(OptionError) as by_the_constructor:
        TrainingArguments("out", jit_mode_eval=True)
    with pytest.raises(OptionError) as by_the_setter:
        getattr(args, name)(jit_mode=True)
    assert by_the_setter.value.problems == by_the_constructor.value.problems
    assert args == untouched


SETTERS = [name for name in vars(setters.GroupedSetters) if name.startswith("set_")]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_examples_in_the_docstrings_run() -> None:
    found = doctest.DocTestFinder(recurse=True).find(setters)
    with_examples = {test.name.rpartition(".")[2] for test in found if test.examples}
    assert len(SETTERS) == 9
    assert with_examples >= set(SETTERS)
    assert doctest.testmod(setters, optionflags=doctest.ELLIPSIS).failed == 0


def test_every_setter_of_the_older_generation_is_here() -> None:
    assert {name for name, *_ in OLDER_CALLS} | {"set_push_to_hub"} == set(SETTERS)
    assert list(inspect.signature(TrainingArguments.set_push_to_hub).parameters)[1:6] == [
        "model_id",
        "strategy",
        "token",
        "private_repo",
        "always_push",
    ]


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
        ("set_optimizer", {"name": "lomu"}, OptionError, {"optim"}),
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
