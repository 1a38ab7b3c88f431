"""What the builder of an optimizer is told, and how it reads `optim_args`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

from mainspring.arguments.option import pairs, parts_of
from mainspring.errors import did_you_mean

OptimizerSpec: TypeAlias = tuple[type[Optimizer], dict[str, Any]]


@dataclass(frozen=True)
class OptimizerRequest:
    """What a builder is told.

    Attributes:
        name: The name it was asked for under, for error messages.
        learning_rate: Peak learning rate.
        betas: Decay rates of Adam's first and second moment.
        epsilon: Adam's term for numerical stability.
        options: The parsed `optim_args`, values still text.
        model: The model to be trained, for builders that choose among its modules.
        weight_decay: Decoupled weight decay, for optimizers that take it apart from their parameter groups.
        warmup_steps: Updates of warm-up, for optimizers that have no schedule.
        targets: `optim_target_modules`: which linear layers a low-rank optimizer acts on.
        max_grad_norm: What optimizers that clip by themselves clip to; None: nothing.
        complete: Whether every optimizer gets what the options say of it, rather than only what the reference hands on.
    """

    name: str
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    options: Mapping[str, str] = field(default_factory=dict)
    model: nn.Module | None = None
    weight_decay: float = 0.0
    warmup_steps: float = 0
    targets: str | Sequence[str] | None = None
    max_grad_norm: float | None = None
    complete: bool = True

    @property
    def adam(self) -> dict[str, Any]:
        """The keywords that optimizers of Adam's kind share."""
        return {"lr": self.learning_rate, "betas": self.betas, "eps": self.epsilon}

    @property
    def adam_where_complete(self) -> dict[str, Any]:
        """The same, for optimizers of which the reference sets the learning rate alone."""
        return self.adam if self.complete else {"lr": self.learning_rate}


_KINDS: dict[Callable[[str], Any], str] = {int: "whole number", float: "number"}
"""How messages call what is not named as its function is."""


def parse_optim_args(text: str | None) -> dict[str, str]:
    """Read `"key=value,key=value"`; spaces do not count, values stay text.

    Raises:
        ValueError: A part without `=`, or a key that is given twice.
    """
    if complaint := pairs(text or ""):
        raise ValueError(f"optim_args={text!r}: {complaint}; write 'key=value,key=value'")
    return dict(part.split("=", 1) for part in parts_of(text or ""))


def boolean(text: str) -> bool:
    """Read a yes or no."""
    if text.lower() in ("1", "true", "t", "yes", "y", "on"):
        return True
    if text.lower() in ("0", "false", "f", "no", "n", "off"):
        return False
    raise ValueError("not a boolean")


def read_options(request: OptimizerRequest, **types: Callable[[str], Any]) -> dict[str, Any]:
    """The request's options converted to their types; only those that were given.

    Args:
        request: Holds the text of the options.
        **types: Every option that the optimizer has, with what converts its text.

    Raises:
        ValueError: An unknown option, or text that does not convert.
    """
    values = {}
    for key, text in request.options.items():
        if key not in types:
            has = f"has {', '.join(types)}" if types else "has no options here"
            raise ValueError(
                f"optim_args: {key!r} is no option of {request.name!r}, which {has}{did_you_mean(key, types)}"
            )
        try:
            values[key] = types[key](text)
        except ValueError:
            kind = _KINDS.get(types[key], types[key].__name__.replace("_", " "))
            raise ValueError(f"optim_args: {key}={text!r} is not a {kind}; write one") from None
    return values
