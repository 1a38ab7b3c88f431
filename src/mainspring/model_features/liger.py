"""Kernels of the package liger-kernel in place of a model's own code (https://arxiv.org/abs/2410.10989).

The package replaces the methods of one model's modules, and besides names in the module of transformers that defines
the model, such as the function for rotary embeddings: these hold for the whole process, and stay.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mainspring.errors import NotAvailableError, OptionError, Problem, did_you_mean
from mainspring.model import base_of_peft, forward_parameters, is_pretrained, unwrap

__all__ = ["loss_alone", "patch"]

_OPTION = "use_liger_kernel"
_CONFIG = "liger_kernel_config"
_FUSED = "fused_linear_cross_entropy"
_PACKAGE = "liger-kernel"

_INTERPRETED = ("rope", "cross_entropy", _FUSED)
"""The kernels that ran on a CPU with liger-kernel 0.8.5, in Triton 3.7 and 3.9."""


def patch(model: nn.Module, config: Mapping[str, bool] | None, device: torch.device) -> None:
    """Put the kernels into a model. A model that the package does not know is left as it is, with a warning.

    Args:
        model: One of transformers' models, with or without adapters.
        config: Kernels that are wanted, or not, against what is usual for the model.
        device: Where the model is trained.

    Raises:
        NotAvailableError: The package is not installed.
        OptionError: A kernel that the model does not have, two that exclude each other, or a device without kernels.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        raise NotAvailableError([Problem(_OPTION, True, f"needs {_PACKAGE}", f"pip install {_PACKAGE}")])
    base = base_of_peft(unwrap(model))
    apply = _patcher_of(base)
    if apply is None:
        warnings.warn(
            f"{_OPTION}=True: has no effect, because {_PACKAGE} has no kernels for {_described(base)}; leave it out",
            UserWarning,
            stacklevel=2,
        )
        return
    chosen = _chosen(apply, base, dict(config or {}))
    if device.type == "cpu":
        _refuse_without_interpreter()
        _warn_of_interpreter({**_usual(apply), **chosen})
    apply(model=base, **chosen)


def _described(model: nn.Module) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return f"{type(model).__name__} (model type {kind!r})" if is_pretrained(model) else type(model).__name__


def _patcher_of(model: nn.Module) -> Any:
    """The function of the package that patches models of this type; None: there is none."""
    if not is_pretrained(model):
        return None
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return MODEL_TYPE_TO_APPLY_LIGER_FN.get(getattr(model.config, "model_type", None))


def _usual(apply: Any) -> dict[str, bool]:
    """The kernels that there are for a model, and whether they are on unless said otherwise."""
    return {name: p.default for name, p in inspect.signature(apply).parameters.items() if name != "model"}


def _chosen(apply: Any, model: nn.Module, config: dict[str, bool]) -> dict[str, bool]:
    """The kernels, once they are known to be there and to go together."""
    usual = _usual(apply)
    for name in config:
        if name not in usual:
            why = f"{name!r} is no kernel for {_described(model)}"
            fix = f"use {', '.join(usual)}{did_you_mean(name, usual)}"
            raise OptionError([Problem(_CONFIG, config, why, fix)])
    chosen = {**config}
    if {**usual, **chosen}.get(_FUSED) and not _predicts_tokens(model):
        _refuse_fused(model, config)
        chosen[_FUSED] = False
    if all({**usual, **chosen}.get(name) for name in ("cross_entropy", _FUSED)):
        why = f"cross_entropy and {_FUSED} exclude each other, and the second is on"
        raise OptionError([Problem(_CONFIG, config, why, f"set {_FUSED} to False beside it, or leave it out")])
    return chosen


def _predicts_tokens(model: Any) -> bool:
    """Whether there is a layer from hidden states to the vocabulary, which that kernel is fused with."""
    return model.get_output_embeddings() is not None


def _refuse_fused(model: nn.Module, config: dict[str, bool]) -> None:
    if config.get(_FUSED):
        why = f"{type(model).__name__} has no layer that gives logits of the vocabulary"
        raise OptionError([Problem(_CONFIG, config, why, f"leave {_FUSED} out")])


def _refuse_without_interpreter() -> None:
    """Triton compiles for accelerators. Its interpreter runs some kernels on the CPU, slowly, to try things out."""
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y"):
        return
    why = "the kernels run on a GPU, and the model is trained on the CPU"
    fix = (
        "train on a GPU, or set the environment variable TRITON_INTERPRET=1 to try some kernels out, or save the "
        "memory of the logits on any device by chunked_cross_entropy"
    )
    raise OptionError([Problem(_OPTION, True, why, fix)])


def _warn_of_interpreter(kernels: Mapping[str, bool]) -> None:
    others = [name for name, wanted in kernels.items() if wanted and name not in _INTERPRETED]
    if others:
        warnings.warn(
            f"{_OPTION}=True: Triton's interpreter is known to run {', '.join(_INTERPRETED)}; if training fails, set "
            f"{_CONFIG}={dict.fromkeys(others, False)}",
            UserWarning,
            stacklevel=3,
        )


def loss_alone(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch, asking a patched model for its loss without the logits, which nobody will read."""
    return {**inputs, "skip_logits": True} if "skip_logits" in forward_parameters(model) else inputs
