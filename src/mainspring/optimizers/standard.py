"""The optimizers of torch, and Adafactor."""

from __future__ import annotations

import torch

from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, boolean, read_options


def adamw(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101)."""
    read_options(request)
    return torch.optim.AdamW, {"lr": request.learning_rate, "betas": request.betas, "eps": request.epsilon}


def adamw_fused(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.AdamW` that updates all parameters in one kernel."""
    cls, kwargs = adamw(request)
    return cls, {**kwargs, "fused": True}


def adafactor(request: OptimizerRequest) -> OptimizerSpec:
    """`mainspring.adafactor.Adafactor` with the learning rate of the schedule instead of its own."""
    from mainspring.adafactor import Adafactor

    read_options(request)
    return Adafactor, {"lr": request.learning_rate, "scale_parameter": False, "relative_step": False}


def sgd(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.SGD`."""
    options = read_options(request, momentum=float, dampening=float, weight_decay=float, nesterov=boolean)
    return torch.optim.SGD, {"lr": request.learning_rate, **options}


def adagrad(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.Adagrad`."""
    options = read_options(request, lr_decay=float, weight_decay=float, eps=float)
    return torch.optim.Adagrad, {"lr": request.learning_rate, **options}


def rmsprop(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.RMSprop`."""
    options = read_options(request, momentum=float, alpha=float, eps=float, weight_decay=float, centered=boolean)
    return torch.optim.RMSprop, {"lr": request.learning_rate, **options}
