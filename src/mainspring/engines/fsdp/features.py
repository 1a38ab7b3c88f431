"""What is put around forward passes in place, so that modules keep their classes and names."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import nn
from torch.utils.checkpoint import checkpoint


def cast_forward(model: nn.Module, accelerator: Accelerator) -> None:
    """Run the model's forward passes in the precision of the run, and give their outputs in fp32."""
    forward = model.forward

    @functools.wraps(forward)
    def cast(*args: Any, **kwargs: Any) -> Any:
        with accelerator.autocast():
            return forward(*args, **kwargs)

    model.forward = convert_outputs_to_fp32(cast)


def recompute(modules: Iterable[nn.Module]) -> None:
    """Have modules compute their activations once more in the backward pass, instead of keeping them.

    torch's `checkpoint_wrapper` would put a module of its own around each, which shows in every parameter's name.
    """
    for module in modules:
        module.forward = _recomputed(module, module.forward)


def _recomputed(module: nn.Module, forward: Any) -> Any:
    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputed


def compile_forward(modules: Iterable[nn.Module], accelerator: Accelerator) -> None:
    """Compile what modules compute, and not what gathers and frees their parameters around it.

    A unit is compiled by itself: the collectives between units would break the graph of the whole model anyway.
    """
    keywords = accelerator.state.dynamo_plugin.to_kwargs()
    for module in modules:
        module.forward = torch.compile(module.forward, **keywords)


def compiles(accelerator: Accelerator) -> bool:
    """Whether the run compiles its model."""
    return str(accelerator.state.dynamo_plugin.backend.value).lower() != "no"
