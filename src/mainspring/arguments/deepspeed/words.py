"""The words of DeepSpeed configurations: which keys there are, and what some of them may hold.

DeepSpeed passes over unknown keys at the top in silence, and over those of some sections; others it refuses when the
run is set up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mainspring.arguments.deepspeed.filling import named
from mainspring.arguments.deepspeed.reading import AUTO, section, setting
from mainspring.arguments.masking import masked
from mainspring.errors import Problem, did_you_mean


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOP = _words(
    "activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type "
    "compile compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last "
    "datastates_ckpt disable_allgather disable_python_gc dump_state eigenvalue elasticity expert_parallel flops_profiler "
    "fp16 gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor graph_harvesting "
    "hybrid_engine log_level managed_gradient_accumulation memory_breakdown nebula optimizer pipeline prescale_gradients "
    "progressive_layer_drop quantize_training scheduler seq_parallel_communication_data_type sequence_parallel_size "
    "sparse_attention sparse_gradients steps_per_print tensor_parallel tensorboard timers torch_autocast train_batch_size "
    "train_micro_batch_size_per_gpu use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown wandb "
    "weight_quantization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization"
)
"""Keys at the top."""

_STAGE_3 = _words(
    "stage3_prefetch_bucket_size stage3_param_persistence_threshold stage3_model_persistence_threshold "
    "stage3_max_live_parameters stage3_max_reuse_distance stage3_gather_16bit_weights_on_model_save "
    "stage3_module_granularity_threshold stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential "
    "stage3_gather_fp16_weights_on_model_save"
)

SECTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "zero_optimization": (
            *_words(
                "stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce "
                "allgather_partitions allgather_bucket_size overlap_comm compute_grad_norm load_from_fp32_weights "
                "elastic_checkpoint offload_param offload_optimizer zenflow sub_group_size cpu_offload_param "
                "cpu_offload_use_pin_memory cpu_offload ignore_unused_parameters legacy_stage1 round_robin_gradients "
                "parameter_alignment zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights "
                "zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint override_module_apply "
                "log_trace_cache_warnings enable_sanity_checks save_muon_momentum_buffer_in_memory leaf_module"
            ),
            *_STAGE_3,
            *(name.removeprefix("stage3_") for name in _STAGE_3[:-1]),
        ),
        "zero_optimization.offload_param": _words("device nvme_path buffer_count buffer_size max_in_cpu pin_memory"),
        "zero_optimization.offload_optimizer": _words(
            "device nvme_path buffer_count pin_memory pipeline_read pipeline_write fast_init ratio super_offload "
            "cpuadam_cores_perc"
        ),
        "fp16": _words(
            "enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis "
            "min_loss_scale fp16_master_weights_and_grads"
        ),
        "bf16": _words(
            "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states"
        ),
        "tensor_parallel": _words(
            "dtype autotp_size tp_overlap_comm vocab_parallel_lm_head vocab_parallel_ce_backend tensor_parallel "
            "injection_policy_tuple partition_config preset_model keep_module_on_host replace_with_kernel_inject tp kernel_inject"
        ),
        "optimizer": ("type", "params", "legacy_fusion"),
        "scheduler": ("type", "params"),
        "aio": _words("block_size queue_depth intra_op_parallelism single_submit overlap_events use_gds"),
        "data_types": ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"),
        "activation_checkpointing": _words(
            "partition_activations number_checkpoints contiguous_memory_optimization synchronize_checkpoint_boundary "
            "profile cpu_checkpointing"
        ),
        "amp": ("enabled", "opt_level"),
        "checkpoint": _words(
            "tag_validation load_universal use_node_local_storage parallel_write checkpoint_serialization writer"
        ),
        "checkpoint.parallel_write": ("pipeline_stage",),
        "flops_profiler": _words(
            "enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file"
        ),
        "torch_autocast": ("enabled", "dtype", "lower_precision_safe_modules"),
    }
)
"""Sections by path, each with the keys that it has."""

_OPEN = ("amp",)
"""Sections whose keys are handed on as they are."""

_ELSEWHERE = MappingProxyType(
    {
        "gradient_accumulation_dtype": "write data_types.grad_accum_dtype",
        "grad_accum_dtype": "write data_types.grad_accum_dtype",
        "zero": "write zero_optimization",
        "stage": "write zero_optimization.stage",
        "zero_optimization.aio": "write aio at the top, beside zero_optimization",
        "aio.thread_count": "write aio.intra_op_parallelism",
        "fp16.opt_level": "leave it out: only the amp section has one",
        "zero_optimization.offload_optimizer_device": "write zero_optimization.offload_optimizer.device",
        "zero_optimization.offload_param_device": "write zero_optimization.offload_param.device",
    }
)
"""Keys that stand in another place."""

SCHEDULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        name: (*keys.split(), "last_batch_iteration")
        for name, keys in {
            "WarmupLR": "warmup_min_lr warmup_max_lr warmup_num_steps warmup_type",
            "WarmupDecayLR": "total_num_steps warmup_min_lr warmup_max_lr warmup_num_steps warmup_type",
            "WarmupCosineLR": "total_num_steps warmup_min_ratio warmup_num_steps cos_min_ratio warmup_type",
            "OneCycle": "cycle_min_lr cycle_max_lr decay_lr_rate cycle_first_step_size cycle_second_step_size "
            "cycle_first_stair_count cycle_second_stair_count decay_step_size cycle_momentum cycle_min_mom cycle_max_mom "
            "decay_mom_rate",
            "LRRangeTest": "lr_range_test_min_lr lr_range_test_step_size lr_range_test_step_rate lr_range_test_staircase",
        }.items()
    }
)
"""DeepSpeed's schedules with their parameters; another name is taken to be one of torch's."""

OPTIMIZERS = ("Adagrad", "Adam", "AdamW", "Lamb", "MuAdam", "MuAdamW", "MuSGD", "Lion", "Muon")
"""DeepSpeed's optimizers, which it knows in small letters as well; another name is taken to be one of torch's."""

TYPES = ("fp16", "bf16", "fp32")
DEVICES = ("cpu", "nvme", "none")

_CHOICES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "communication_data_type": TYPES,
        "seq_parallel_communication_data_type": TYPES,
        "data_types.grad_accum_dtype": TYPES,
        "data_types.param_dtype": TYPES,
        "data_types.buffer_dtype": TYPES,
        "zero_optimization.stage": (0, 1, 2, 3),
        "zero_optimization.offload_param.device": DEVICES,
        "zero_optimization.offload_optimizer.device": DEVICES,
        "fp16.enabled": (True, False),
        "bf16.enabled": (True, False),
        "amp.enabled": (True, False),
    }
)
"""Settings of which only these values can be, beside "auto" where the options know them."""


def unknown_keys(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Every key that DeepSpeed does not have, at the top, where notes may begin with an underscore, and in sections."""
    for path, keys in {"": TOP, **SECTIONS}.items():
        found = config if not path else section(config, path)
        for key, value in found.items():
            is_note = not path and str(key).startswith("_")
            if key not in keys and path not in _OPEN and not is_note:
                yield _no_key(f"{path}.{key}" if path else str(key), value, keys)


def _no_key(path: str, value: Any, keys: tuple[str, ...]) -> Problem:
    above, _, key = path.rpartition(".")
    hint = _ELSEWHERE.get(path) or f"leave it out{did_you_mean(key, keys)}"
    where = f" in {above}" if above else ""
    said = masked({key: value})[key]
    return Problem(named(path), said, f"there is no such key{where}, and it would do nothing", hint)


def without_empty(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without sections that are null: DeepSpeed would look into some of them."""
    return {key: value for key, value in config.items() if value is not None or key not in SECTIONS}


def no_sections(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Sections that hold something else than settings."""
    for path in (*SECTIONS, "optimizer.params", "scheduler.params"):
        found = setting(config, path)
        if found is not None and not isinstance(found, Mapping):
            yield Problem(named(path), found, "holds no settings", "write them in braces")


def unknown_values(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Values where only some can be."""
    for path, choices in _CHOICES.items():
        value = setting(config, path)
        if value is None or value == AUTO or any(value == one and type(value) is type(one) for one in choices):
            continue
        named_choices = ", ".join(str(one).lower() for one in choices)
        hint = _nearest(value, choices)
        yield Problem(named(path), value, f"is not one of {named_choices}", f"choose one of them{hint}")


_MEANT = MappingProxyType(
    {"bfp16": "bf16", "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
)
"""Types as others call them."""


def _nearest(value: Any, choices: tuple[Any, ...]) -> str:
    if choices == TYPES and value in _MEANT:
        return f"; did you mean {_MEANT[value]!r}?"
    if str(value) in map(str, choices):
        return f": without quotes, {value}"
    return did_you_mean(value, [*choices]) if isinstance(value, str) and isinstance(choices[0], str) else ""


def unknown_schedule(config: Mapping[str, Any]) -> Iterator[Problem]:
    """A schedule without a name, one that nearly is DeepSpeed's, and parameters that it does not take."""
    yield from _unnamed(config, "scheduler", SCHEDULES)
    keys = SCHEDULES.get(str(setting(config, "scheduler.type")))
    for key, value in section(config, "scheduler.params").items() if keys else ():
        if key not in (keys or ()):
            name = setting(config, "scheduler.type")
            yield Problem(
                named(f"scheduler.params.{key}"),
                value,
                f"{name} has no such parameter",
                f"leave it out{did_you_mean(str(key), keys or ())}",
            )


def unknown_optimizer(config: Mapping[str, Any]) -> Iterator[Problem]:
    """An optimizer without a name, or one that nearly is DeepSpeed's."""
    yield from _unnamed(config, "optimizer", OPTIMIZERS)


def _unnamed(config: Mapping[str, Any], path: str, names: Any) -> Iterator[Problem]:
    if not isinstance(setting(config, path), Mapping):
        return
    name = setting(config, f"{path}.type")
    if not isinstance(name, str):
        why = f"the {path} has no name, and DeepSpeed would make none"
        yield Problem(named(f"{path}.type"), name, why, f"name one of {', '.join(names)}, or leave the section out")
    elif (hint := did_you_mean(name, names)) and name.lower() not in map(str.lower, (*names, *_OF_TORCH)):
        yield Problem(named(f"{path}.type"), name, f"is no {path} of DeepSpeed's", f"correct the name{hint}")
    elif path == "scheduler" and name not in names and name.lower() in map(str.lower, names):
        right = next(one for one in names if one.lower() == name.lower())
        yield Problem(named(f"{path}.type"), name, "DeepSpeed tells capital letters from small ones", f"write {right}")


_OF_TORCH = (
    "NAdam",
    "RAdam",
    "Adamax",
    "SparseAdam",
    "Adadelta",
    "ASGD",
    "SGD",
    "Rprop",
    "RMSprop",
    "LBFGS",
    "Adafactor",
)
"""Optimizers of torch's, some of which look like DeepSpeed's misspelt."""
