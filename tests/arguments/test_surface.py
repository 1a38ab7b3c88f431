"""Names, defaults and resolved values beside the installed reference; every deliberate difference has its reason here."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from enum import Enum

import pytest
import transformers
from transformers import trainer_utils, training_args

from mainspring import Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments import enums
from mainspring.arguments.docstring import default_of
from mainspring.names import OPTIMIZER_NAMES, SCHEDULER_NAMES

pytestmark = pytest.mark.parity

OWN = {
    "chunked_cross_entropy",
    "compat",
    "ddp_comm_hook",
    "ema_decay",
    "eval_loss_reduction",
    "eval_memory_limit",
    "loss_spike_rollback_updates",
    "loss_spike_threshold",
    "lr_groups",
    "max_rollbacks",
    "max_skipped_updates",
    "max_time",
    "max_tokens_per_batch",
    "on_loss_spike",
    "on_nonfinite",
    "optimizer_in_backward",
    "pack_length",
    "pack_sequences",
    "peak_flops",
    "profile_steps",
    "resume_log_window",
    "save_failure",
    "save_in_background",
    "save_on_exception",
    "save_training_args_bin",
    "stop_signals",
}
"""Options that only this package has."""

OLDER = {"past_index"}
"""Options of 4.37 that the newest reference has given up, and that work here."""

OTHER_DEFAULTS = {
    "restore_callback_states_from_checkpoint": (None, "callbacks go on after a resume, unless compat='5'"),
}
"""Defaults that differ, with the reason."""

OTHER_RESOLVED = {
    "restore_callback_states_from_checkpoint": "as its default",
    "accelerator_config": "an object of our class, with the same settings",
}
"""Options that read back differently after construction, with the reason."""

PAIRS = [
    (TrainingArguments, transformers.TrainingArguments),
    (Seq2SeqTrainingArguments, transformers.Seq2SeqTrainingArguments),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_options_are_the_references_and_our_own(ours: type, theirs: type) -> None:
    names = {field.name for field in dataclasses.fields(ours)}
    assert names - OWN - OLDER == {field.name for field in dataclasses.fields(theirs)}
    assert names >= OWN


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_defaults_are_the_references(ours: type, theirs: type) -> None:
    wanted = {field.name: default_of(field) for field in dataclasses.fields(theirs)}
    wanted |= {name: default for name, (default, _) in OTHER_DEFAULTS.items()}
    found = {field.name: default_of(field) for field in dataclasses.fields(ours) if field.name not in OWN | OLDER}
    assert found == wanted


OPTION_SETS = [
    {},
    {"use_cpu": False},
    {"logging_steps": 500.0},
    {"logging_steps": 0.1},
    {"logging_strategy": "no", "logging_steps": 0},
    {"eval_strategy": "steps"},
    {"eval_strategy": "steps", "logging_steps": 0.2},
    {"eval_strategy": "steps", "eval_steps": 0.3},
    {"eval_strategy": "steps", "eval_steps": 0, "logging_steps": 7},
    {"eval_strategy": "epoch", "do_eval": False},
    {"eval_strategy": "epoch", "save_strategy": "best"},
    {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True},
    {"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3, "load_best_model_at_end": True},
    {"eval_strategy": "epoch", "save_strategy": "best", "load_best_model_at_end": True},
    {"eval_strategy": "epoch", "lr_scheduler_type": "reduce_lr_on_plateau"},
    {"metric_for_best_model": "accuracy"},
    {"metric_for_best_model": "eval_loss"},
    {"metric_for_best_model": "eval_second_loss"},
    {"metric_for_best_model": "accuracy", "greater_is_better": False},
    {"greater_is_better": True},
    {"report_to": []},
    {"report_to": ["none"]},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": False, "activation_checkpointing": True},
    {"gradient_checkpointing": True, "activation_checkpointing": False},
    {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    {"gradient_checkpointing_kwargs": {"debug": True}, "activation_checkpointing_kwargs": {"every_n_layers": 2}},
    {"torch_compile": True},
    {"torch_compile_mode": "default"},
    {"torch_compile_backend": "eager"},
    {"warmup_steps": 0.5},
    {"warmup_steps": 1.5},
    {"max_steps": 5, "num_train_epochs": -1},
    {"max_grad_norm": 0},
    {"max_grad_norm": -1},
    {"include_num_input_tokens_seen": True},
    {"include_num_input_tokens_seen": False},
    {"include_num_input_tokens_seen": "non_padding"},
    {"lr_scheduler_kwargs": '{"num_cycles": "2", "a": "true", "b": "0.5", "c": "text"}'},
    {"lr_scheduler_kwargs": {"num_cycles": "2"}},
    {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2},
    {"save_steps": 0},
    {"disable_tqdm": True},
    {"output_dir": None},
    {"output_dir": "~/out"},
    {"bf16": True, "fp16_full_eval": True},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTION_SETS, ids=str)
def test_options_read_back_as_in_the_reference(options: dict[str, object]) -> None:
    given = {"output_dir": "out", "use_cpu": True, **options}
    ours, theirs = TrainingArguments(**given), transformers.TrainingArguments(**given)
    for field in dataclasses.fields(theirs):
        if field.name not in OTHER_RESOLVED:
            value, wanted = getattr(ours, field.name), getattr(theirs, field.name)
            assert value == wanted, field.name
            assert type(value) is type(wanted) or isinstance(value, (Enum, str)), field.name


REFUSED_BY_BOTH = [
    {"logging_steps": 0},
    {"logging_steps": 1.5},
    {"eval_strategy": "steps", "logging_steps": 0, "logging_strategy": "no"},
    {"eval_strategy": "steps", "eval_steps": 2.5},
    {"save_steps": 2.5},
    {"load_best_model_at_end": True},
    {"load_best_model_at_end": True, "eval_strategy": "epoch"},
    {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 300},
    {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.25},
    {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 30},
    {"lr_scheduler_type": "reduce_lr_on_plateau"},
    {"fp16": True, "bf16": True},
    {"fp16_full_eval": True, "bf16_full_eval": True},
    {"dataloader_prefetch_factor": 2},
    {"warmup_steps": -1},
    {"torch_empty_cache_steps": 0},
    {"optim": "foo"},
    {"eval_strategy": True},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", REFUSED_BY_BOTH, ids=str)
def test_what_the_reference_refuses_is_refused(options: dict[str, object]) -> None:
    for cls in (transformers.TrainingArguments, TrainingArguments):
        with pytest.raises(ValueError):
            cls(output_dir="out", use_cpu=True, **options)


ONLY_OLDER = {"set_evaluate": ["jit_mode"], "set_testing": ["jit_mode"], "set_lr_scheduler": ["warmup_ratio"]}
"""Keywords that 4.37 had and the installed reference has not."""


@pytest.mark.parametrize(
    "name",
    [
        "get_process_log_level",
        "get_warmup_steps",
        "main_process_first",
        "to_dict",
        "to_json_string",
        "to_sanitized_dict",
        *(name for name in vars(transformers.TrainingArguments) if name.startswith("set_")),
    ],
)
def test_methods_take_what_the_references_take(name: str) -> None:
    ours, theirs = (
        {p.name: p.default for p in inspect.signature(getattr(cls, name)).parameters.values()}
        for cls in (TrainingArguments, transformers.TrainingArguments)
    )
    older = ONLY_OLDER.get(name, [])
    assert {n: default for n, default in ours.items() if n not in older} == theirs
    assert list(ours) == [*theirs, *older]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (enums.IntervalStrategy, trainer_utils.IntervalStrategy),
        (enums.SaveStrategy, trainer_utils.SaveStrategy),
        (enums.HubStrategy, trainer_utils.HubStrategy),
        (enums.FSDPOption, trainer_utils.FSDPOption),
        (enums.HPSearchBackend, trainer_utils.HPSearchBackend),
        (enums.SchedulerType, trainer_utils.SchedulerType),
        (enums.DebugOption, transformers.debug_utils.DebugOption),
        (enums.ParallelMode, training_args.ParallelMode),
    ],
)
def test_enumerations_have_the_references_members(ours: type[Enum], theirs: type[Enum]) -> None:
    assert {m.name: m.value for m in ours} == {m.name: m.value for m in theirs}


def test_optimizer_names_include_the_references() -> None:
    ours = {m.name: m.value for m in enums.OptimizerNames}
    theirs = {m.name: m.value for m in training_args.OptimizerNames}
    assert ours.items() >= theirs.items()


def test_names_of_optimizers_and_schedules_are_said_once() -> None:
    assert {m.value for m in enums.OptimizerNames} == set(OPTIMIZER_NAMES)
    assert {m.value for m in enums.SchedulerType} == set(SCHEDULER_NAMES)


@pytest.mark.parametrize("total", [0, 1, 7, 100, 333])
@pytest.mark.parametrize("warmup", [0, 0.03, 0.1, 0.999, 1, 1.5, 10])
def test_warmup_is_rounded_as_in_the_reference(warmup: float, total: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (
            cls(output_dir="out", use_cpu=True, warmup_steps=warmup)
            for cls in (TrainingArguments, transformers.TrainingArguments)
        )
    assert ours.get_warmup_steps(total) == theirs.get_warmup_steps(total)
