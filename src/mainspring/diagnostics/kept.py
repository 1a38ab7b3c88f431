"""What a pass through a model changes, kept and put back: gradients, buffers, training modes, random states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from mainspring.seeding import capture_rng, restore_rng


@contextlib.contextmanager
def as_before(model: nn.Module, distributed: bool) -> Iterator[None]:
    """Leave the model and the random streams as they were, whatever the body does; it begins without gradients.

    Args:
        model: The model, unwrapped.
        distributed: Whether the random states are those of one process of several.
    """
    states = capture_rng(distributed)
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer  # a forward may have put another in its place
                if buffer is not None and value is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)
        restore_rng(states, distributed)
