"""Each rule: options that break it, and the nearest ones that do not. All problems come in one error."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from mainspring import Seq2SeqTrainingArguments, TrainingArguments
from mainspring.arguments import rules
from mainspring.errors import OptionError

STEPS = {"eval_strategy": "steps", "eval_steps": 100}


def sharded(**settings: Any) -> dict[str, Any]:
    return {"fsdp": True, "fsdp_config": settings}


RULE_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "logging_by_steps_needs_steps": ({"logging_steps": 0}, {"logging_steps": 0, "logging_strategy": "no"}),
    "evaluation_by_steps_needs_steps": (
        {"eval_strategy": "steps", "logging_strategy": "no", "logging_steps": 0},
        {"eval_strategy": "steps", "logging_strategy": "no", "logging_steps": 0, "eval_steps": 5},
    ),
    "best_model_needs_evaluations": (
        {"load_best_model_at_end": True, "save_strategy": "no"},
        {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"},
    ),
    "best_model_needs_matching_strategies": (
        {"load_best_model_at_end": True, "save_strategy": "epoch", **STEPS},
        {"load_best_model_at_end": True, "save_strategy": "best", **STEPS},
    ),
    "best_model_needs_saves_on_evaluations": (
        {"load_best_model_at_end": True, "save_steps": 250, **STEPS},
        {"load_best_model_at_end": True, "save_steps": 300, **STEPS},
    ),
    "best_checkpoint_is_only_saved_on_evaluations": (
        {"save_strategy": "best"},
        {"save_strategy": "best", "eval_strategy": "epoch"},
    ),
    "stopping_needs_full_checkpoints": ({"max_time": 60, "save_only_model": True}, {"max_time": 60}),
    "a_budget_of_tokens_is_given": (
        {"train_sampling_strategy": "token_budget", "max_tokens_per_batch": None},
        {"train_sampling_strategy": "token_budget", "max_tokens_per_batch": 4096},
    ),
    "one_order": (
        {"sortish_sampler": True, "train_sampling_strategy": "batch_rebalance"},
        {"sortish_sampler": True, "train_sampling_strategy": "group_by_length"},
    ),
    "packing_chooses_the_order": (
        {"pack_sequences": True, "train_sampling_strategy": "sequential"},
        {"pack_sequences": True, "train_sampling_strategy": "random"},
    ),
    "smoothing_needs_logits": (
        {"chunked_cross_entropy": True, "label_smoothing_factor": 0.1},
        {"chunked_cross_entropy": True},
    ),
    "a_memory_is_found_beside_logits": (
        {"chunked_cross_entropy": True, "past_index": 1},
        {"chunked_cross_entropy": True, "past_index": -1},
    ),
    "liger_leaves_logits_out_by_itself": (
        {"chunked_cross_entropy": True, "use_liger_kernel": True},
        {
            "chunked_cross_entropy": True,
            "use_liger_kernel": True,
            "liger_kernel_config": {"fused_linear_cross_entropy": False},
        },
    ),
    "known_keywords_of_accumulation": (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 0}}},
        {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
    ),
    "known_keywords_of_recomputing": (
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_layer": 2}},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 2}},
    ),
    "sharding_is_one_of_its_version": (
        sharded(reshard_after_forward="hybrid_shard"),
        sharded(reshard_after_forward="hybrid_shard", version=1),
    ),
    "only_what_is_sharded_is_offloaded": (
        sharded(cpu_offload=True, version=1, sharding_strategy="hybrid_shard"),
        sharded(cpu_offload=True, version=1, sharding_strategy="shard_grad_op"),
    ),
    "one_way_to_wrap": (
        sharded(min_num_params=5, transformer_layer_cls_to_wrap="Block"),
        sharded(min_num_params=0, transformer_layer_cls_to_wrap="Block"),
    ),
    "one_loader_sends_to_all": (
        sharded(version=1, cpu_ram_efficient_loading=True, sync_module_states=False),
        sharded(version=1, sync_module_states=False),
    ),
    "xla_settings_need_xla": (sharded(xla_fsdp_grad_ckpt=True), sharded(xla_fsdp_grad_ckpt=True, xla=True)),
    "xla_recomputes_wrapped_layers": (
        sharded(xla_fsdp_grad_ckpt=True, xla=True, auto_wrap_policy="NO_WRAP"),
        sharded(xla_fsdp_grad_ckpt=True, xla=True, min_num_params=5),
    ),
    "one_system_shards": ({"fsdp": True, "deepspeed": {"zero_optimization": {"stage": 2}}}, {"fsdp": True}),
    "one_way_to_recompute": (
        {**sharded(activation_checkpointing=True), "gradient_checkpointing": True},
        {**sharded(activation_checkpointing=False), "gradient_checkpointing": True},
    ),
    "a_model_alone_is_whole": (
        {**sharded(state_dict_type="SHARDED_STATE_DICT"), "save_only_model": True},
        {**sharded(state_dict_type="FULL_STATE_DICT"), "save_only_model": True},
    ),
    "known_signals": ({"stop_signals": ["SIGKILL"]}, {"stop_signals": ["SIGTERM", "SIGUSR2"]}),
    "one_precision": ({"fp16": True, "bf16": True}, {"fp16": True}),
    "one_evaluation_precision": (
        {"fp16_full_eval": True, "bf16_full_eval": True},
        {"bf16": True, "fp16_full_eval": True},
    ),
    "metric_schedules_need_evaluations": (
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
    ),
    "low_rank_needs_targets": (
        {"optim": "galore_adamw", "optim_target_modules": None},
        {"optim": "galore_adamw", "optim_target_modules": "all-linear"},
    ),
    "one_average_of_weights": (
        {"optim": "schedule_free_adamw", "ema_decay": 0.9},
        {"optim": "adamw_torch", "ema_decay": 0.9},
    ),
    "known_debugging_aids": ({"debug": ["underflow_overflows"]}, {"debug": ["underflow_overflow"]}),
    "prefetching_needs_workers": (
        {"dataloader_prefetch_factor": 2},
        {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1},
    ),
    "persistence_needs_workers": (
        {"dataloader_persistent_workers": True},
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    ),
    "start_of_workers_needs_workers": (
        {"dataloader_multiprocessing_context": "spawn"},
        {"dataloader_multiprocessing_context": "spawn", "dataloader_num_workers": 1},
    ),
    "one_length": ({"num_train_epochs": -1}, {"num_train_epochs": -1, "max_steps": 3}),
    "known_metric_inputs": ({"include_for_metrics": ["loss", "labels"]}, {"include_for_metrics": ["loss", "inputs"]}),
    "known_token_counts": (
        {"include_num_input_tokens_seen": "some"},
        {"include_num_input_tokens_seen": "all"},
    ),
}

NOTICE_CASES = {
    "warmup_outlasts_the_run": ({"max_steps": 5, "warmup_steps": 10}, {"max_steps": 5, "warmup_steps": 5}),
    "the_loop_says_when_to_step": (
        {"accelerator_config": {"gradient_accumulation_kwargs": {"adjust_scheduler": False}}},
        {"accelerator_config": {"gradient_accumulation_kwargs": {"adjust_scheduler": True}}},
    ),
    "installed_services_are_not_told": ({"compat": "4.37"}, {"compat": "4.37", "report_to": "none"}),
    "version_2_does_not_know": (sharded(limit_all_gathers=True), sharded(limit_all_gathers=True, version=1)),
    "the_policy_does_not_look_at": (
        sharded(min_num_params=5, auto_wrap_policy="TRANSFORMER_BASED_WRAP"),
        sharded(min_num_params=5, auto_wrap_policy="SIZE_BASED_WRAP"),
    ),
    "a_way_that_nobody_takes": (
        {"parallelism_config": {"tp_size": 2, "cp_handler": {"cp_comm_strategy": "alltoall"}}},
        {"parallelism_config": {"cp_size": 2, "cp_handler": {"cp_comm_strategy": "alltoall"}}},
    ),
    "saves_never_come": ({"save_steps": 0}, {"save_steps": 0, "save_strategy": "no"}),
}


RULES = {rule.__name__: rule for rule in rules.RULES}


@pytest.fixture(autouse=True)
def _one_service_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "installed_services", lambda: ["tensorboard"])


def test_every_rule_has_a_case() -> None:
    assert set(RULE_CASES) == set(RULES)
    assert set(NOTICE_CASES) == {notice.__name__ for notice in rules.NOTICES}


@pytest.mark.parametrize("name", RULE_CASES)
def test_a_broken_rule_is_an_error_that_names_option_value_and_way_out(name: str) -> None:
    broken, kept = RULE_CASES[name]
    with pytest.raises(OptionError) as error:
        Seq2SeqTrainingArguments("out", **broken)
    unchecked = object.__new__(Seq2SeqTrainingArguments)
    vars(unchecked).update(vars(Seq2SeqTrainingArguments("out")), **broken)
    problem = RULES[name](unchecked)
    assert problem in error.value.problems
    assert problem.option in {*broken, "eval_steps"}
    assert problem.why
    assert problem.fix
    Seq2SeqTrainingArguments("out", **kept)


@pytest.mark.parametrize("name", NOTICE_CASES)
def test_a_notice_is_a_warning_at_the_users_line(name: str) -> None:
    noticed, quiet = NOTICE_CASES[name]
    with pytest.warns(UserWarning, match=next(reversed(noticed))) as caught:
        TrainingArguments("out", **noticed)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrainingArguments("out", **quiet)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", -1),
        ("gradient_accumulation_steps", 0),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("adam_beta1", 1.0),
        ("adam_beta2", -0.1),
        ("adam_epsilon", -1e-8),
        ("label_smoothing_factor", 1.5),
        ("logging_steps", 1.5),
        ("eval_steps", -1),
        ("save_steps", 2.5),
        ("eval_delay", -1),
        ("eval_accumulation_steps", 0),
        ("torch_empty_cache_steps", 0),
        ("dataloader_num_workers", -1),
        ("dataloader_prefetch_factor", 0),
        ("seed", -1),
        ("data_seed", 2**32),
        ("ddp_timeout", 0),
        ("ddp_bucket_cap_mb", 0),
    ],
)
def test_a_value_out_of_range_is_refused(option: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"^{option}="):
        TrainingArguments("out", **{option: value})


def test_all_problems_come_together() -> None:
    with pytest.raises(OptionError) as error:
        TrainingArguments("out", learning_rate=-1, seed="x", optim="adamw_torhc", bf16="maybe", save_steps=2.5)
    named = {problem.option for problem in error.value.problems}
    assert named == {"learning_rate", "seed", "optim", "bf16", "save_steps"}
    assert len(str(error.value).splitlines()) == 5
    assert "did you mean 'adamw_torch'?" in str(error.value)


def test_all_broken_rules_come_together() -> None:
    with pytest.raises(OptionError) as error:
        TrainingArguments("out", fp16=True, bf16=True, dataloader_prefetch_factor=2, logging_steps=0)
    assert {p.option for p in error.value.problems} == {"fp16", "dataloader_prefetch_factor", "logging_steps"}
