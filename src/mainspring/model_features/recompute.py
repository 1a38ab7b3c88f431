"""Activations that are computed again in the backward pass, instead of being kept (https://arxiv.org/abs/1604.06174).

A model that can do so itself, as transformers' can, is asked to. In any other, the layers that repeat do.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mainspring.arguments.recomputing import SELECTION, problem_of
from mainspring.errors import OptionError
from mainspring.model import base_of_peft, is_peft, unwrap
from mainspring.model_features import layers

__all__ = ["Recomputing", "is_reentrant", "start"]


@dataclass(frozen=True)
class Recomputing:
    """Which layers recompute, and how.

    Attributes:
        every_n_layers: The first layer does, and every n-th from there on.
        offload: Whether what a layer needs to begin again waits in the host's memory.
        keywords: Those of `torch.utils.checkpoint.checkpoint`.
    """

    every_n_layers: int = 1
    offload: bool = False
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kwargs: Mapping[str, Any] | None) -> Recomputing:
        """Read the option.

        Raises:
            OptionError: A keyword that there is not, or a value that it cannot have.
        """
        if (problem := problem_of(kwargs)) is not None:
            raise OptionError([problem])
        given = dict(kwargs or {})
        selection = {name: given.pop(name) for name in SELECTION if name in given}
        return cls(**selection, keywords=given)

    @property
    def selects(self) -> dict[str, Any]:
        """The choice of layers and of the place, as far as it is not the usual one."""
        chosen = {"every_n_layers": self.every_n_layers, "offload": self.offload}
        return {name: value for name, value in chosen.items() if value != getattr(Recomputing, name)}

    @property
    def reentrant(self) -> bool:
        """Whether torch's older way was asked for."""
        return bool(self.keywords.get("use_reentrant", False))


def is_reentrant(kwargs: Mapping[str, Any] | None) -> bool:
    """Whether torch's older way is asked for, whose parameters DDP cannot find in the graph of a forward pass."""
    return Recomputing.of(kwargs).reentrant


def is_on(model: nn.Module) -> bool:
    """Whether some of a transformers model recomputes already, as a script may have asked of it itself."""
    return any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules())


def start(model: nn.Module, kwargs: Mapping[str, Any] | None, device: torch.device) -> Callable[[], None]:
    """Have the model recompute activations.

    Args:
        model: Any module.
        kwargs: What `activation_checkpointing_kwargs` holds.
        device: Where the model is trained.

    Returns:
        What ends it. A model that recomputes by itself goes on doing so: it keeps that as one of its settings.

    Raises:
        OptionError: A keyword is wrong, or there is nothing in the model to recompute.
    """
    how = _offloading_only_from(device, Recomputing.of(kwargs))
    if (enable := _own_way(model, how)) is None:
        return layers.start(model, how, device)
    keywords = {"use_reentrant": False, **how.keywords} if how.keywords else {}
    enable(keywords)
    if how.reentrant and is_peft(model):
        _let_gradients_in(model)
    return _nothing


def _nothing() -> None:
    """There is nothing to end."""


def _offloading_only_from(device: torch.device, how: Recomputing) -> Recomputing:
    if not how.offload or device.type != "cpu":
        return how
    warnings.warn(
        "activation_checkpointing_kwargs={'offload': True}: has no effect, because the model is trained on the CPU and "
        "its activations are in the host's memory already; leave it out",
        UserWarning,
        stacklevel=2,
    )
    return Recomputing(how.every_n_layers, False, how.keywords)


# ---- models that can do it themselves ----


def _own_way(model: nn.Module, how: Recomputing) -> Callable[[Mapping[str, Any]], None] | None:
    """What turns it on with the keywords it is given; None where the model has nothing that can do what was asked."""
    for generation in _generations(base_of_peft(unwrap(model))):
        enable = getattr(unwrap(model), f"{generation}_enable", None)
        if enable is not None and _takes(enable, how.selects):
            return functools.partial(_call, enable, f"{generation}_kwargs", how.selects)
    return None


_GENERATIONS = ("activation_checkpointing", "gradient_checkpointing")
"""The newer and the older name of the method, but for what follows in it."""


def _generations(model: Any) -> Sequence[str]:
    """The names to try: those methods first that the model's author has written, and not transformers."""
    inherited = [name for name in _GENERATIONS if _is_inherited(model, name)]
    own = [name for name in _GENERATIONS if name not in inherited]
    return [*own, *inherited] if inherited and model.supports_gradient_checkpointing else own


def _is_inherited(model: nn.Module, name: str) -> bool:
    method = getattr(type(model), f"{name}_enable", None)
    return getattr(method, "__module__", None) == "transformers.modeling_utils"


def _takes(enable: Any, selects: Mapping[str, Any]) -> bool:
    parameters = inspect.signature(enable).parameters
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return anything or selects.keys() <= parameters.keys()


def _call(enable: Any, name: str, selects: Mapping[str, Any], keywords: Mapping[str, Any]) -> None:
    # Without any, the model's own are right; a method may take no argument at all.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing_enable. is deprecated", FutureWarning)
        enable(**({name: dict(keywords)} if keywords else {}), **selects)


def _let_gradients_in(model: nn.Module) -> None:
    """Where the embeddings are frozen, gradients reach adapters through torch's older way only if these require them."""
    base: Any = base_of_peft(unwrap(model))
    if not hasattr(base, "_require_grads_hook") and hasattr(base, "enable_input_require_grads"):
        base.enable_input_require_grads()
