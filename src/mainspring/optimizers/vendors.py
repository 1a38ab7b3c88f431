"""AdamW as makers of other hardware, or of other extensions of torch, have built it."""

from __future__ import annotations

from importlib import import_module

from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, read_options


def _adamw(module: str, name: str, request: OptimizerRequest) -> OptimizerSpec:
    read_options(request)
    return getattr(import_module(module), name), request.adam


def xla(request: OptimizerRequest) -> OptimizerSpec:
    """torch_xla's AdamW, which does not wait for the device to find out whether gradients are finite."""
    return _adamw("torch_xla.amp.syncfree", "AdamW", request)


def npu(request: OptimizerRequest) -> OptimizerSpec:
    """torch_npu's AdamW in one kernel."""
    return _adamw("torch_npu.optim", "NpuFusedAdamW", request)


def apex(request: OptimizerRequest) -> OptimizerSpec:
    """Apex's Adam in one kernel, which decouples weight decay by default."""
    return _adamw("apex.optimizers", "FusedAdam", request)
