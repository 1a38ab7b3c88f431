"""Whether a model keeps the samples of a row apart: it is asked, with a few tokens, before training begins."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mainspring import model as models
from mainspring.data.packing.columns import POSITIONS, TOKENS, Columns
from mainspring.data.packing.layouts import Layout
from mainspring.errors import OptionError, Problem

_TOKENS = 8
"""Tokens of a sample that is tried."""

_FIX = (
    "train without it, or with another attn_implementation where that is at fault; "
    "train_sampling_strategy='token_budget' or 'group_by_length' also save padding"
)


def obstacle(model: nn.Module) -> str | None:
    """Why a model cannot train on packed rows, as far as its making says; None where nothing speaks against it."""
    name = type(models.unwrap(model)).__name__
    if models.is_encoder_decoder(model):
        return f"{name} is an encoder-decoder, whose inputs and targets are two sequences"
    if POSITIONS not in models.forward_parameters(model):
        return f"{name}.forward takes no {POSITIONS!r}, so that positions cannot begin anew at each sample"
    if models.carries_state(model):
        return f"{name} carries a state from token to token, from one sample into the next"
    return None


def check_isolation(
    model: nn.Module, layout: Layout, samples: list[Any], context: contextlib.AbstractContextManager[Any]
) -> None:
    """Make sure that a model trains on packed rows, and computes nothing of a sample from the others in its row.

    Args:
        model: The model, not wrapped. It is run four times on a few tokens, in evaluation mode; once a gradient is taken,
            which is not kept.
        layout: How rows are laid out for it.
        samples: Token ids of one or more samples.
        context: What the forward passes run in, such as autocast.

    Raises:
        OptionError: If it computes something from them, or does not take packed rows, forward or backward.
    """
    why = obstacle(model)
    if why is None and not any(parameter.is_meta for parameter in model.parameters()):
        with models.evaluating(model), context:
            why = _observed(model, layout, *_trial(samples))
    if why is not None:
        raise OptionError([Problem("pack_sequences", True, why, _FIX)])


def _trial(samples: list[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """A sample, another in its place, and the one that stands after either."""
    tokens = [torch.as_tensor(sample)[:_TOKENS].long() for sample in samples if len(sample)]
    if not tokens:
        tokens = [torch.tensor([0])]
    first, last = tokens[0], tokens[-1]
    seen = torch.cat(tokens).unique()
    others = seen[seen != first[0]]
    substitute = others[0] if len(others) else (first[0] == 0).long()
    return first, substitute.expand(len(first)), last


def _observed(model: nn.Module, layout: Layout, first: Tensor, other: Tensor, last: Tensor) -> str | None:
    """What speaks against packing in how the model treats the `last` of two samples in a row."""
    name = type(models.unwrap(model)).__name__
    needed = _needed_arguments(model)
    try:
        _differentiate(model, layout, [first, last])
        with torch.no_grad():
            behind, altered, alone = (
                _logits(model, layout(_columns(samples), [len(samples)]), needed if len(samples) == 1 else None)[
                    -len(last) :
                ]
                for samples in ([first, last], [other, last], [last])
            )
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as failure:
        return f"{name} does not take packed rows ({type(failure).__name__}: {failure})"
    scale = float(alone.abs().max())
    error = torch.finfo(alone.dtype).eps
    if float((behind - altered).abs().max()) > 4 * error * scale:
        return f"{name} lets the samples of a row see each other: altering one changed the logits of the next"
    if float((behind - alone).abs().max()) > error**0.5 * scale:
        return f"{name} gives a sample behind another one other logits than alone"
    return None


def _differentiate(model: nn.Module, layout: Layout, samples: list[Tensor]) -> None:
    """Forward and backward on a row: an attention may have the one on a device, and not the other.

    The parameters' own gradients stay as they are.
    """
    trained = next((parameter for parameter in model.parameters() if parameter.requires_grad), None)
    with torch.enable_grad():
        logits = _logits(model, layout(_columns(samples), [len(samples)]), None)
        if trained is not None and logits.requires_grad:
            torch.autograd.grad(logits.sum(), trained, allow_unused=True)


def _columns(samples: list[Tensor]) -> Columns:
    return Columns({TOKENS: torch.cat(samples)}, [len(sample) for sample in samples])


def _needed_arguments(model: nn.Module) -> set[str]:
    """What forward cannot be called without, the tokens among them."""
    parameters = models.forward_parameters(model).values()
    return {TOKENS, *(one.name for one in parameters if one.default is one.empty)}


def _logits(model: nn.Module, batch: dict[str, Any], names: set[str] | None) -> Tensor:
    """The logits of each token of a batch's only row; `names` are the arguments to give, None for all but the labels."""
    device = next(model.parameters()).device
    names = {*batch} - {"labels"} | _needed_arguments(model) if names is None else names
    inputs = {name: value for name, value in batch.items() if name in names}
    outputs = model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()})
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    for value in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
        if isinstance(value, Tensor) and value.dim() == 3 and value.shape[:2] == batch[TOKENS].shape:
            return value[0]
    raise ValueError("it returns no 'logits' for each token")
