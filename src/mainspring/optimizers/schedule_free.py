"""Schedule-free optimizers, which need no falling learning rate.

A. Defazio et al.: *The Road Less Scheduled*, https://arxiv.org/abs/2405.15682. They keep two sets of weights, and are
told when training and when evaluation begins.
"""

from __future__ import annotations

from typing import Any

from schedulefree import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree

from mainspring.errors import OptionError, Problem
from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, read_options


def _shared(request: OptimizerRequest) -> dict[str, Any]:
    given = read_options(request, weight_lr_power=float, r=float)
    return {
        "lr": request.learning_rate,
        "weight_decay": request.weight_decay,
        "weight_lr_power": 2.0,
        "r": 0.0,
        **given,
    }


def _warmup(request: OptimizerRequest) -> int:
    """The updates of warm-up. These optimizers count for themselves, and do not know how long the run is."""
    if 0 < request.warmup_steps < 1:
        why = f"{request.name} warms up by itself, and cannot tell how many updates that share of the run is"
        raise OptionError([Problem("warmup_steps", request.warmup_steps, why, "give a number of updates")])
    return int(request.warmup_steps)


def adamw(request: OptimizerRequest) -> OptimizerSpec:
    """`schedulefree.AdamWScheduleFree`."""
    own = {"betas": request.betas, "eps": request.epsilon, "warmup_steps": _warmup(request)}
    return AdamWScheduleFree, {**own, **_shared(request)}


def sgd(request: OptimizerRequest) -> OptimizerSpec:
    """`schedulefree.SGDScheduleFree`."""
    return SGDScheduleFree, {"warmup_steps": _warmup(request), **_shared(request)}


def radam(request: OptimizerRequest) -> OptimizerSpec:
    """`schedulefree.RAdamScheduleFree`, which rectifies instead of warming up."""
    return RAdamScheduleFree, {"betas": request.betas, "eps": request.epsilon, **_shared(request)}
