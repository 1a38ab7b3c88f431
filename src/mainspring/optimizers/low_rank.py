"""GaLore and APOLLO: optimizers that keep their states for a low-rank projection of the gradients of linear layers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from mainspring.errors import OptionError, Problem
from mainspring.optimizers.parameters import decay_parameter_names, parameter_groups
from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, read_options
from mainspring.optimizers.targets import target_layers

Settings = dict[str, Any]

_GALORE: dict[str, tuple[Callable[[str], Any], Any]] = {
    "rank": (int, 128),
    "update_proj_gap": (int, 200),
    "scale": (float, 0.25),
    "proj_type": (str, "std"),
}
_APOLLO: dict[str, tuple[Callable[[str], Any], Any]] = {
    "rank": (int, 128),
    "proj": (str, "random"),
    "scale_type": (str, "channel"),
    "update_proj_gap": (int, 200),
    "scale": (float, 1.0),
    "proj_type": (str, "std"),
}


def galore_adamw(request: OptimizerRequest) -> OptimizerSpec:
    """GaLore's AdamW: J. Zhao et al., *GaLore*, ICML 2024, https://arxiv.org/abs/2403.03507."""
    cls = import_module("galore_torch").GaLoreAdamW
    return cls, {**request.adam_where_complete, "params": _groups(request, _settings(request, _GALORE))}


def galore_adamw_8bit(request: OptimizerRequest) -> OptimizerSpec:
    """GaLore's AdamW with 8-bit states of bitsandbytes."""
    if not torch.cuda.is_available():
        why = "its 8-bit states wait for a CUDA device, and there is none"
        raise OptionError([Problem("optim", request.name, why, f"use {request.name.replace('_8bit', '')!r}")])
    cls = import_module("galore_torch").GaLoreAdamW8bit
    return cls, {**request.adam_where_complete, "params": _groups(request, _settings(request, _GALORE))}


def galore_adafactor(request: OptimizerRequest) -> OptimizerSpec:
    """GaLore's Adafactor, with the learning rate of the schedule."""
    cls = import_module("galore_torch").GaLoreAdafactor
    kwargs = {"lr": request.learning_rate, "scale_parameter": False, "relative_step": False}
    return cls, {**kwargs, "params": _groups(request, _settings(request, _GALORE))}


def apollo_adamw(request: OptimizerRequest) -> OptimizerSpec:
    """APOLLO's AdamW: H. Zhu et al., *APOLLO*, https://arxiv.org/abs/2412.05270."""
    cls = import_module("apollo_torch").APOLLOAdamW
    settings = {**_settings(request, _APOLLO), "betas": request.betas, "eps": request.epsilon}
    return cls, {**request.adam_where_complete, "params": _groups(request, settings)}


def _settings(request: OptimizerRequest, known: dict[str, tuple[Callable[[str], Any], Any]]) -> Settings:
    given = read_options(request, **{name: kind for name, (kind, _) in known.items()})
    return {name: given.get(name, default) for name, (_, default) in known.items()}


def _groups(request: OptimizerRequest, settings: Settings) -> list[Settings]:
    """The parameters in groups, that of the projected ones last."""
    model = request.model
    if model is None:
        raise ValueError(f"model=None: optimizer {request.name!r} chooses among the model's layers; pass the model")
    layers = target_layers(model, request.targets, request.name)
    # By the first of its names: a head that shares its weight with the embeddings is none of those that are projected.
    wanted = {f"{name}.weight" for name in layers}
    named = [parameter for name, parameter in model.named_parameters() if name in wanted]
    projected = [parameter for parameter in named if parameter.requires_grad]
    if not projected:
        matched = ", ".join(list(layers)[:5])
        why = f"the layers that match {'are frozen' if named else 'share their weights with embeddings'}: {matched}"
        raise OptionError([Problem("optim_target_modules", request.targets, why, "name layers that are trained")])
    return [
        *_others(model, {id(weight) for weight in projected}, request),
        {"params": projected, **_decay(request), **settings},
    ]


def _others(model: nn.Module, projected: set[int], request: OptimizerRequest) -> list[Settings]:
    if not _decays(request):
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in projected]
        return [{"params": rest}]
    groups = parameter_groups(model, decay_parameter_names(model), request.weight_decay)
    return [{**group, "params": [p for p in group["params"] if id(p) not in projected]} for group in groups]


def _decay(request: OptimizerRequest) -> Settings:
    """Weights of linear layers are decayed as they are elsewhere."""
    return {"weight_decay": request.weight_decay} if _decays(request) else {}


def _decays(request: OptimizerRequest) -> bool:
    return bool(request.complete and request.weight_decay)
