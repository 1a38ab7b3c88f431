"""Door: what scripts import from ``trainer_pt_utils``: nested tensors, samplers, label smoothing, settings."""

from __future__ import annotations

from mainspring.absent import not_available_yet
from mainspring.arguments.accelerator_config import AcceleratorConfig
from mainspring.data.grouping import (
    DistributedLengthGroupedSampler,
    LengthGroupedSampler,
    get_length_grouped_indices,
)
from mainspring.data.rebalance import BatchRebalanceSampler
from mainspring.data.stream_shard import IterableDatasetShard
from mainspring.loss import LabelSmoother
from mainspring.metrics import (
    EvalLoopContainer,
    atleast_1d,
    find_batch_size,
    metrics_format,
    nested_concat,
    nested_detach,
    nested_numpify,
    nested_truncate,
    numpy_pad_and_concatenate,
    torch_pad_and_concatenate,
)
from mainspring.model import param_count as get_model_param_count
from mainspring.optimizers import get_parameter_names
from mainspring.processes import torch_distributed_zero_first

__all__ = [
    "AcceleratorConfig",
    "BatchRebalanceSampler",
    "DistributedLengthGroupedSampler",
    "EvalLoopContainer",
    "IterableDatasetShard",
    "LabelSmoother",
    "LengthGroupedSampler",
    "atleast_1d",
    "find_batch_size",
    "get_length_grouped_indices",
    "get_model_param_count",
    "get_parameter_names",
    "metrics_format",
    "nested_concat",
    "nested_detach",
    "nested_numpify",
    "nested_truncate",
    "numpy_pad_and_concatenate",
    "torch_distributed_zero_first",
    "torch_pad_and_concatenate",
]

__getattr__ = not_available_yet(
    __name__,
    "DistributedSamplerWithLoop",
    "LayerWiseDummyOptimizer",
    "LayerWiseDummyScheduler",
    "ShardSampler",
    "distributed_broadcast_scalars",
    "distributed_concat",
    "expand_like",
    "get_dataloader_sampler",
    "get_learning_rates",
    "get_module_class_from_name",
    "get_num_trainable_parameters",
    "get_optimizer_group",
    "get_tpu_sampler",
    "is_attention_mask_causal",
    "log_metrics",
    "nested_gather",
    "nested_new_like",
    "nested_xla_mesh_reduce",
    "reissue_pt_warnings",
    "remove_dummy_checkpoint",
    "safe_globals",
    "save_metrics",
    "save_state",
    "set_rng_state_for_device",
)
