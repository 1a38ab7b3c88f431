"""Calls into methods that users override, in either generation's signature.

`training_step(model, inputs)` of the older generation and `training_step(model, inputs, num_items_in_batch)` of the
newer one are both met in real subclasses. What an override takes is looked up once per run, never per step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def adapt(method: Callable[..., Any], parameters: Sequence[str]) -> Callable[..., Any]:
    """Return a callable that takes `parameters` positionally, whatever `method` takes.

    Args:
        method: A bound method or function, perhaps written for the older signature.
        parameters: The newest signature's parameter names, in order.

    Returns:
        `method` itself where it takes them all; otherwise a wrapper that leaves out those it does not take, by name
        where its names are known, by position where they are its own.
    """
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # a callable without a signature, such as a mock written in C: trust it
        return method
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    own = [name for name, parameter in signature.parameters.items() if parameter.kind in _POSITIONAL]
    if inspect.Parameter.VAR_POSITIONAL in kinds or len(own) >= len(parameters):
        return method
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return lambda *args: method(**dict(zip(parameters, args, strict=False)))
    if set(own) <= set(parameters):
        places = [parameters.index(name) for name in own]
        return lambda *args: method(*(args[place] for place in places if place < len(args)))
    return lambda *args: method(*args[: len(own)])


def takes(method: Callable[..., Any], name: str) -> bool:
    """Whether `method` can be given the keyword `name`."""
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return True
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
