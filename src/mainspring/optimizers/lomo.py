"""LOMO and AdaLomo: optimizers that update each parameter inside the backward pass, and keep no gradients.

K. Lv et al.: *Full Parameter Fine-tuning for Large Language Models with Limited Resources*,
https://arxiv.org/abs/2306.09782, and *AdaLomo*, https://arxiv.org/abs/2310.10195.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from mainspring.errors import OptionError, Problem
from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, read_options


def lomo(request: OptimizerRequest) -> OptimizerSpec:
    """`lomo_optim.Lomo`."""
    return import_module("lomo_optim").Lomo, _kwargs(request)


def adalomo(request: OptimizerRequest) -> OptimizerSpec:
    """`lomo_optim.AdaLomo`."""
    if not torch.cuda.is_available():
        why = "AdaLomo's updates are written for CUDA, and there is no such device"
        raise OptionError([Problem("optim", request.name, why, "use 'lomo'")])
    return import_module("lomo_optim").AdaLomo, _kwargs(request)


def _kwargs(request: OptimizerRequest) -> dict[str, Any]:
    given = read_options(request, clip_grad_value=float)
    decay = {"weight_decay": request.weight_decay} if request.weight_decay else {}
    return {"model": request.model, "lr": request.learning_rate, **decay, **given}
