"""Layers that AutoTP has divided: which they are, and how they are put together for a moment."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mainspring.errors import NotAvailableError, Problem

_KNOWN = {"LinearLayer", "LinearAllreduce"}
"""Those whose pieces come together as what they were. Others do not, or are of models that nobody has tried."""


def check_layers(model: nn.Module, size: int) -> None:
    """Refuse a model that DeepSpeed has not divided so that it can be put together again.

    Args:
        model: The model, set up by DeepSpeed.
        size: Into how many parts.

    Raises:
        NotAvailableError: It has not.
    """
    kinds = {type(module).__name__ for module in model.modules() if is_divided_layer(module)}
    if size == 1 or (kinds and kinds <= _KNOWN):
        return
    others = ", ".join(sorted(kinds - _KNOWN))
    raise _not_divided(
        model, size, f"as {others}, which cannot be put together again here" if others else "in none of its layers"
    )


@contextlib.contextmanager
def why_not_divided(model: nn.Module, size: int) -> Iterator[None]:
    """Say of a model that DeepSpeed does not know how to divide which it is, and what can be done instead."""
    try:
        yield
    except AssertionError as error:
        if size == 1 or "AutoTP not supported" not in str(error):
            raise
        raise _not_divided(model, size, "in none of its layers: there is no plan for models of its kind") from error


def _not_divided(model: nn.Module, size: int, how: str) -> NotAvailableError:
    why = f"DeepSpeed divides {type(model).__name__} {how}"
    fix = "leave it out, and let ZeRO divide the model"
    return NotAvailableError([Problem("deepspeed tensor_parallel.autotp_size", size, why, fix)])


def divides_layers(model: nn.Module) -> bool:
    """Whether some of a model's layers are divided."""
    return any(map(is_divided_layer, model.modules()))


def is_divided_layer(module: nn.Module) -> bool:
    """Whether each process has a part of this module."""
    layers = sys.modules.get("deepspeed.module_inject.layers")
    return layers is not None and isinstance(module, layers.TensorParallel_Layer)


def is_part(parameter: Any) -> bool:
    """Whether a parameter is a part of one, rather than the same on each process."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


@contextlib.contextmanager
def together(module: Any) -> Iterator[list[nn.Parameter]]:
    """The parameters of a divided layer are whole in the body, and afterwards what they were, where they were.

    DeepSpeed's own way leaves other tensors there, which ZeRO's steps do not reach any more. Yields those of the layer; none,
    where the module is not divided. All processes of a model enter it.
    """
    parameters = _parameters(module) if is_divided_layer(module) else []
    kept = [p.data for p in parameters]
    try:
        if parameters:
            module.gather_params(parameters)
        yield parameters
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


@contextlib.contextmanager
def filling(module: Any) -> Iterator[None]:
    """As `together`, and of what is put into the parameters each process keeps its part."""
    with together(module) as parameters:
        yield
        if parameters:
            module._tp_partition(parameters)
        filled = [p.data for p in parameters]
    with torch.no_grad():
        for parameter, data in zip(parameters, filled, strict=True):
            parameter.data.copy_(data)


def _parameters(layer: Any) -> list[nn.Parameter]:
    return [p for p in (layer.weight, getattr(layer, "bias", None)) if p is not None]
