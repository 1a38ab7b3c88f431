"""Noise on the embeddings while a model is trained: NEFTune (https://arxiv.org/abs/2310.05914)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.errors import OptionError, Problem
from mainspring.model import base_of_peft, unwrap

__all__ = ["Noise"]

_OPTION = "neftune_noise_alpha"


class Noise:
    """Noise on what a model's input embeddings give, while they are in training mode. It begins at once.

    Each element of an output of `length` rows and `width` columns gets a number drawn evenly from
    ±alpha / sqrt(length * width), padding included, from torch's generator for the device.

    Args:
        model: Has `get_input_embeddings`, itself or under its wrappers and adapters.
        alpha: The paper's α; 5, 10 and 15 are its values.

    Raises:
        OptionError: The model has no such embeddings.
    """

    def __init__(self, model: nn.Module, alpha: float) -> None:
        self._embeddings = _embeddings_of(model, alpha)
        # Where others look whether there is noise, and how much.
        self._embeddings.neftune_noise_alpha = alpha
        self._hook = self._embeddings.register_forward_hook(functools.partial(_noisy, alpha))

    def remove(self) -> None:
        """Leave the embeddings as they were. A second time does nothing."""
        self._hook.remove()
        self._embeddings.__dict__.pop(_OPTION, None)


def _embeddings_of(model: nn.Module, alpha: float) -> Any:
    base = base_of_peft(unwrap(model))
    try:
        found: Any = getattr(base, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        found = None
    if isinstance(found, nn.Module):
        return found
    why = f"{type(base).__name__} does not say what its input embeddings are"
    fix = "give it a method get_input_embeddings() that returns their module, or leave it out"
    raise OptionError([Problem(_OPTION, alpha, why, fix)])


def _noisy(alpha: float, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    if not module.training:
        return output
    # The bound is rounded to single precision, as the reference's is: the noise is the same to the last bit.
    bound = float(alpha / torch.sqrt(torch.tensor(output.shape[-2] * output.shape[-1])))
    return output + torch.zeros_like(output).uniform_(-bound, bound)
