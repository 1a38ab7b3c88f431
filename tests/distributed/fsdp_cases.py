"""The runs in which a sharded model must be trained as a whole one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One run on two processes.

    Attributes:
        fsdp: Its `fsdp_config`.
        options: Its other options.
        alone: Those of one process that does the same; None: those of the plain run.
        tolerance: How far losses and gradient norms may be from that, relatively.
    """

    fsdp: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    alone: Mapping[str, Any] | None = None
    tolerance: float = 2e-5


ACCUMULATES = {"gradient_accumulation_steps": 2}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
SYNCS = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
HALF = 1e-2
"""Half precision rounds otherwise where parameters are gathered in it."""


def first(**settings: Any) -> dict[str, Any]:
    """Settings of the first version."""
    return {"version": 1, **settings}


CASES: Mapping[str, Case] = {
    "plain": Case(),
    "no_reshard": Case({"reshard_after_forward": False}, EVALUATES),
    "accumulates": Case(options=ACCUMULATES, alone=ACCUMULATES),
    "syncs_each": Case(options={**ACCUMULATES, **SYNCS}, alone=ACCUMULATES),
    "clips": Case(options={"max_grad_norm": 0.1}, alone={"max_grad_norm": 0.1}),
    "does_not_clip": Case(options={"max_grad_norm": 0.0}, alone={"max_grad_norm": 0.0}),
    "offloads": Case({"cpu_offload": True}),
    "recomputes": Case({"activation_checkpointing": True}),
    "model_recomputes": Case(options={"gradient_checkpointing": True}),
    "one_unit": Case({"auto_wrap_policy": "NO_WRAP"}),
    "by_size": Case({"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 3000}),
    "by_name": Case({"transformer_layer_cls_to_wrap": ["GPT2MLP"]}),
    "smooths_labels": Case(options={"label_smoothing_factor": 0.2}, alone={"label_smoothing_factor": 0.2}),
    "adamw": Case(options={"optim": "adamw_torch"}),
    "adafactor": Case(options={"optim": "adafactor"}, alone={"optim": "adafactor"}, tolerance=1e-4),
    "sgd": Case(options={"optim": "sgd"}, alone={"optim": "sgd"}),
    "compiles": Case(options={"torch_compile": True, "torch_compile_backend": "aot_eager"}),
    "no_logits": Case(options={"chunked_cross_entropy": True}),
    "no_logits_by_size": Case(
        {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 3000}, {"chunked_cross_entropy": True}
    ),
    "bf16": Case(options={"bf16": True}, alone={"bf16": True}, tolerance=HALF),
    "bf16_offloads": Case({"cpu_offload": True}, {"bf16": True}, {"bf16": True}, HALF),
    "first": Case(first()),
    "first_accumulates": Case(first(), ACCUMULATES, ACCUMULATES),
    "first_shard_grad_op": Case(first(reshard_after_forward="shard_grad_op"), EVALUATES),
    "first_no_shard": Case(first(reshard_after_forward="no_shard"), ACCUMULATES, ACCUMULATES),
    "first_hybrid": Case(first(reshard_after_forward="hybrid_shard")),
    "first_hybrid_zero2": Case(first(reshard_after_forward="hybrid_shard_zero2")),
    "first_flat": Case(first(use_orig_params=False)),
    "first_prefetches": Case(first(forward_prefetch=True, backward_prefetch="backward_pre", limit_all_gathers=True)),
    "first_prefetches_late": Case(first(backward_prefetch="backward_post")),
    "first_recomputes": Case(first(activation_checkpointing=True)),
    "first_model_recomputes": Case(first(), {"gradient_checkpointing": True}),
    "first_by_size": Case(first(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=3000)),
    "first_no_logits": Case(first(), {"chunked_cross_entropy": True}),
    "first_bf16": Case(first(), {"bf16": True}, {"bf16": True}, HALF),
}
"""Two processes against one, by name."""

ENGINES: Mapping[str, Mapping[str, Any]] = {
    "whole": {"fsdp": True},
    "shards": {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}},
    "first_whole": {"fsdp": True, "fsdp_config": first()},
    "first_shards": {"fsdp": True, "fsdp_config": first(state_dict_type="SHARDED_STATE_DICT")},
    "ddp": {},
}
"""Ways to write a checkpoint, each of which reads those of all."""

COPIES = {"dp_replicate_size": 2, "dp_shard_size": 2}
FOUR: Mapping[str, Mapping[str, Any]] = {
    "four": {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}},
    "copies": {"parallelism_config": COPIES},
    "only_copies": {"parallelism_config": {"dp_replicate_size": 4}},
    "first_copies": {"parallelism_config": COPIES, "fsdp_config": first()},
    "first_copies_zero2": {"parallelism_config": COPIES, "fsdp_config": first(reshard_after_forward="shard_grad_op")},
    "first_copies_unsharded": {"parallelism_config": COPIES, "fsdp_config": first(reshard_after_forward="no_shard")},
    "first_only_copies": {"parallelism_config": {"dp_replicate_size": 4}, "fsdp_config": first()},
}
"""Four processes, by name."""
