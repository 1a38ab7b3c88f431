"""Options that cannot act in their combination are said at construction: each once, and only where it was given."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest

from mainspring import Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments.idle import IDLE, NO_ADAM, NO_WARMUP

EVALUATED = {"eval_strategy": "steps", "eval_steps": 100}

NO_SAVES = {"save_strategy": "no"}

OLDER = {"compat": "4.37", "report_to": "none"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # option: itself, what makes it idle, what lets it act
    "warmup_steps": ({"warmup_steps": 10}, {"lr_scheduler_type": "constant"}, {"lr_scheduler_type": "inverse_sqrt"}),
    "adam_beta1": ({"adam_beta1": 0.8}, {"optim": "sgd"}, {"optim": "adamw_torch"}),
    "adam_beta2": ({"adam_beta2": 0.99}, {"optim": "adafactor"}, {}),
    "adam_epsilon": ({"adam_epsilon": 1e-6}, {"optim": "rmsprop"}, {"optim": "adamw_torch_fused"}),
    "optim_target_modules": ({"optim_target_modules": "all-linear"}, {}, {"optim": "galore_adamw"}),
    "num_train_epochs": ({"num_train_epochs": 2}, {"max_steps": 5}, {"max_steps": -1}),
    "activation_checkpointing_kwargs": (
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {},
        {"gradient_checkpointing": True},
    ),
    "liger_kernel_config": ({"liger_kernel_config": {"rope": True}}, {}, {"use_liger_kernel": True}),
    "dataloader_in_order": ({"dataloader_in_order": False}, {}, {"dataloader_num_workers": 1}),
    "eval_steps": ({"eval_steps": 10}, {"eval_strategy": "epoch"}, {"eval_strategy": "steps"}),
    "logging_steps": ({"logging_steps": 10}, {"logging_strategy": "epoch"}, {"logging_strategy": "steps"}),
    "save_steps": ({"save_steps": 10}, {"save_strategy": "epoch"}, {}),
    "save_total_limit": ({"save_total_limit": 2}, {"save_strategy": "no"}, {"save_strategy": "epoch"}),
    "save_only_model": ({"save_only_model": True}, NO_SAVES, {**NO_SAVES, "save_on_exception": True}),
    "save_failure": ({"save_failure": "raise"}, NO_SAVES, {**NO_SAVES, "enable_jit_checkpoint": True}),
    "save_in_background": ({"save_in_background": True}, NO_SAVES, {**NO_SAVES, "max_time": 60}),
    "stop_signals": ({"stop_signals": ["SIGTERM"]}, NO_SAVES, {**NO_SAVES, "max_time": "1:00"}),
    "eval_delay": ({"eval_delay": 2}, {}, {"eval_strategy": "epoch"}),
    "metric_for_best_model": ({"metric_for_best_model": "accuracy"}, {}, {"eval_strategy": "epoch"}),
    "greater_is_better": (
        {"greater_is_better": True},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "epoch", "metric_for_best_model": "accuracy"},
    ),
    "average_tokens_across_devices": ({"average_tokens_across_devices": False}, OLDER, {"compat": "5"}),
    "eval_loss_reduction": ({"eval_loss_reduction": "token"}, OLDER, {"compat": "5"}),
    "loss_spike_threshold": ({"loss_spike_threshold": 4.0}, {}, {"on_loss_spike": "skip"}),
    "loss_spike_rollback_updates": (
        {"loss_spike_rollback_updates": 10},
        {"on_loss_spike": "skip"},
        {"on_loss_spike": "rollback"},
    ),
    "max_rollbacks": ({"max_rollbacks": 1}, {"on_loss_spike": "skip"}, {"on_loss_spike": "rollback"}),
    "max_skipped_updates": ({"max_skipped_updates": 1}, {"on_nonfinite": "raise"}, {"on_nonfinite": "skip"}),
    "eval_memory_limit": ({"eval_memory_limit": "1GB"}, {"prediction_loss_only": True}, {}),
    "generation_max_length": ({"generation_max_length": 20}, {}, {"predict_with_generate": True}),
    "generation_num_beams": ({"generation_num_beams": 4}, {}, {"predict_with_generate": True}),
    "predict_with_generate": ({"predict_with_generate": True}, {"prediction_loss_only": True}, {}),
    "length_column_name": (
        {"length_column_name": "tokens"},
        {"train_sampling_strategy": "sequential"},
        {"train_sampling_strategy": "batch_rebalance"},
    ),
    "max_tokens_per_batch": ({"max_tokens_per_batch": 4096}, {}, {"train_sampling_strategy": "token_budget"}),
    "per_device_train_batch_size": (
        {"per_device_train_batch_size": 4},
        {"train_sampling_strategy": "token_budget", "max_tokens_per_batch": 4096},
        {"train_sampling_strategy": "group_by_length"},
    ),
    "sortish_sampler": ({"sortish_sampler": True}, {"compat": "5"}, {"train_sampling_strategy": "group_by_length"}),
    "pack_length": ({"pack_length": 512}, {}, {"pack_sequences": True}),
    "fsdp_config": ({"fsdp_config": {"version": 1}}, {}, {"fsdp": True}),
    "torch_empty_cache_steps": ({"torch_empty_cache_steps": 4}, {"use_cpu": True}, {}),
}

QUIET_COMBINATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "defaults written out": {"logging_steps": 500, "logging_strategy": "no", "save_steps": 500, "save_strategy": "no"},
    "intervals of 0": {"logging_steps": 0, "logging_strategy": "no", "save_steps": 0, "save_strategy": "no"},
    "evaluations take the interval of logs": {"logging_steps": 10, "logging_strategy": "no", "eval_strategy": "steps"},
    "epochs are said not to count": {"num_train_epochs": -1, "max_steps": 5},
    "a schedule that follows the loss": {"lr_scheduler_type": "reduce_lr_on_plateau", **EVALUATED},
    "the best model by the default metric": {"load_best_model_at_end": True, "save_steps": 100, **EVALUATED},
    "no keywords of recomputing": {"gradient_checkpointing_kwargs": {}},
    "a metric for early stopping": {"metric_for_best_model": "accuracy", "eval_strategy": "epoch"},
    "what compat means, written out": {**OLDER, "eval_loss_reduction": "batch_mean"},
    "whatever stops a run needs no strategy": {**NO_SAVES, "save_on_exception": True, "max_time": 60},
    "a saved model has its options beside it": {**NO_SAVES, "save_training_args_bin": True},
    "an example script": {
        "learning_rate": 2e-5,
        "per_device_train_batch_size": 16,
        "num_train_epochs": 5,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "logging_steps": 10,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "seed": 1,
    },
}


def test_every_idle_option_has_a_case() -> None:
    listed = [name for idle in IDLE for name in idle.options]
    assert sorted(listed) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_an_option_without_effect_is_one_warning_with_its_value_and_the_way_out(name: str) -> None:
    given, idle, acting = CASES[name]
    value = next(iter(given.values()))
    with pytest.warns(UserWarning, match=f"^{name}=.*: has no effect, because .+; .+") as caught:
        Seq2SeqTrainingArguments("out", **given, **idle)
    assert [(warning.filename, warning.category) for warning in caught] == [(__file__, UserWarning)]
    assert repr(value) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Seq2SeqTrainingArguments("out", **given, **acting)


@pytest.mark.parametrize("options", QUIET_COMBINATIONS.values(), ids=QUIET_COMBINATIONS)
def test_ordinary_combinations_are_quiet(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = Seq2SeqTrainingArguments("out", **options)
        type(args)(**args.to_dict())


def test_each_idle_option_of_a_group_is_named() -> None:
    with pytest.warns(UserWarning, match="no effect") as caught:
        TrainingArguments("out", optim="adagrad", adam_beta1=0.8, adam_epsilon=1e-6)
    assert [str(warning.message).partition("=")[0] for warning in caught] == ["adam_beta1", "adam_epsilon"]


def test_signals_do_not_stop_what_cannot_go_on() -> None:
    with pytest.warns(UserWarning, match="^stop_signals=.*save_only_model is set"):
        TrainingArguments("out", stop_signals=["SIGTERM"], save_only_model=True)


def test_the_default_of_a_subclass_is_not_the_users_choice() -> None:
    @dataclasses.dataclass
    class Mine(TrainingArguments):
        logging_steps: float = 10

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Mine("out", logging_strategy="epoch")
    with pytest.warns(UserWarning, match="^logging_steps=20"):
        Mine("out", logging_strategy="epoch", logging_steps=20)


def test_the_lists_of_names_agree_with_what_is_built() -> None:
    """An optimizer or schedule that is added must be put on a side."""
    import inspect

    from mainspring.optimizers import optimizer_class_and_kwargs
    from mainspring.schedulers import SCHEDULERS
    from tests.optimizers import rows

    model = rows.tiny_llama()

    def reads_adam(name: str) -> bool:
        given = {
            "adam_beta1": 0.5,
            "adam_beta2": 0.6,
            "adam_epsilon": 0.7,
            **rows.row_of(name).options,
            "optim_args": None,
        }
        args = TrainingArguments("out", optim=name, **given)
        kwargs = optimizer_class_and_kwargs(args, model)[1]
        return kwargs.get("eps") == 0.7 or kwargs.get("betas", ())[:2] == (0.5, 0.6)

    known = {name for name in rows.HERE if rows.is_installed(name)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert set(NO_ADAM) & known == {name for name in known if not reads_adam(name)}
    takes_warmup = {
        name for name in SCHEDULERS.names() if "num_warmup_steps" in inspect.signature(SCHEDULERS[name]).parameters
    }
    assert set(NO_WARMUP) == set(SCHEDULERS.names()) - takes_warmup
