"""Options as they were written for version 4.37, and what is recorded of the arguments that they make.

Nothing here imports either library.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

BASE: dict[str, Any] = {"output_dir": "a/out", "report_to": "none", "use_cpu": True, "disable_tqdm": False}

CASES: dict[str, dict[str, Any]] = {
    repr(options): options
    for options in (
        {},
        {"evaluation_strategy": "epoch"},
        {"evaluation_strategy": "steps"},
        {"evaluation_strategy": "steps", "do_eval": False, "logging_steps": 7},
        {"evaluation_strategy": "no", "do_eval": True},
        {"no_cuda": True},
        {"no_cuda": False},
        {"per_gpu_train_batch_size": 3},
        {"per_gpu_eval_batch_size": 5},
        {"warmup_ratio": 0.1},
        {"warmup_ratio": 1.0},
        {"warmup_ratio": 0.1, "warmup_steps": 5},
        {"warmup_ratio": 1.5},
        {"warmup_ratio": -0.5},
        {"adafactor": True},
        {"adafactor": False, "optim": "sgd"},
        {"group_by_length": True},
        {"include_inputs_for_metrics": True},
        {"include_tokens_per_second": True},
        {"include_num_input_tokens_seen": True},
        {"dispatch_batches": True},
        {"dispatch_batches": False},
        {"split_batches": True},
        {"fsdp": "full_shard auto_wrap"},
        {"fsdp": ["full_shard", "auto_wrap"]},
        {"fsdp": "shard_grad_op offload"},
        {"fsdp": True},
        {"fsdp": ""},
        {"fsdp": "nosuch"},
        {"fsdp": "full_shard auto_wrap", "fsdp_min_num_params": 2000},
        {"fsdp": "full_shard", "fsdp_config": {"min_num_params": 7}, "fsdp_min_num_params": 7},
        {"fsdp": "full_shard auto_wrap", "fsdp_transformer_layer_cls_to_wrap": "BertLayer"},
        {"fsdp": "full_shard", "fsdp_config": {"xla": False, "backward_prefetch": "backward_pre"}},
        *({"torchdynamo": name} for name in ("eager", "aot_eager", "inductor", "nvfuser", "aot_nvfuser")),
        *({"torchdynamo": name} for name in ("aot_cudagraphs", "ofi", "fx2trt", "onnxrt", "ipex")),
        *({"fp16_opt_level": level} for level in ("O0", "O1", "O2", "O3")),
        *({"half_precision_backend": name} for name in ("auto", "apex", "cpu_amp", "cuda_amp")),
        {"fp16_backend": "apex"},
        {"debug": "underflow_overflow"},
        {"debug": "underflow_overflow tpu_metrics_debug"},
        {"debug": ["underflow_overflow"]},
        {"tpu_metrics_debug": True},
        {"use_mps_device": False},
        {"jit_mode_eval": False, "use_ipex": False, "past_index": -1, "tpu_num_cores": None, "mp_parameters": ""},
        {"save_safetensors": False},
        {"save_safetensors": True},
        {"overwrite_output_dir": True},
        {"ray_scope": "all"},
        {"use_legacy_prediction_loop": True},
        {"push_to_hub_model_id": "name", "push_to_hub_organization": "org"},
        {"push_to_hub_organization": "org"},
        {"push_to_hub_organization": "org", "output_dir": "deep/down/here/"},
        {"push_to_hub_token": "secret"},
        {"sharded_ddp": "simple"},
        {"load_best_model_at_end": True, "evaluation_strategy": "epoch", "save_strategy": "epoch"},
        {"metric_for_best_model": "accuracy", "evaluation_strategy": "epoch"},
    )
}

NOT_RECORDED = frozenset({"logging_dir", "local_rank", "_n_gpu"})
"""What depends on the time or the machine."""


def recorded(args: Any, names: Iterable[str]) -> dict[str, Any]:
    """What the arguments hold, as JSON does, in the older names."""
    values = {name: plain(getattr(args, name)) for name in names if name not in NOT_RECORDED}
    batches = {"train_batch_size": args.train_batch_size, "eval_batch_size": args.eval_batch_size}
    return {**values, **batches, "warmup": [args.get_warmup_steps(total) for total in (1, 7, 1000)]}


def plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
