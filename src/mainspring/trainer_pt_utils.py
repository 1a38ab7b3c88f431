"""Door: what scripts import from ``trainer_pt_utils``: nested tensors, samplers, label smoothing."""

from __future__ import annotations

from mainspring.data.samplers import LengthGroupedSampler, get_length_grouped_indices
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

__all__ = [
    "EvalLoopContainer",
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
    "torch_pad_and_concatenate",
]
