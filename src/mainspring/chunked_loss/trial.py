"""Whether a model's loss is the same without logits: it is asked, with a few tokens, before training begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mainspring import model as models
from mainspring.chunked_loss.head import LossHead, attribute
from mainspring.errors import OptionError, Problem
from mainspring.loss import IGNORE_INDEX, loss_of

_SHAPE = (2, 8)
_REACH = 60.0
"""How large the largest logit is made: a tanh around small ones would go unnoticed."""


def loss_head(model: nn.Module, obstacle: str | None) -> LossHead:
    """The head of a model whose losses are to be computed without logits.

    Args:
        model: The model, not wrapped.
        obstacle: What of the run speaks against it; None: nothing does.

    Raises:
        OptionError: It cannot be, for that reason or one of the model's.
    """
    if obstacle is None:
        try:
            head = LossHead(model)
        except ValueError as failure:
            obstacle = str(failure)
        else:
            obstacle = obstacle_of(model, head)
    if obstacle is not None:
        raise OptionError([Problem("chunked_cross_entropy", True, obstacle, "leave it out")])
    return head


def obstacle_of(model: nn.Module, head: LossHead) -> str | None:
    """Why a model's loss cannot be had from hidden states; None where it can.

    The model computes the loss of a few tokens in both ways, in evaluation mode and without gradients. For that its
    logits are made large, and a bias is made other than zero: what is not linear in them shows, and so does what would
    scale a bias too.

    Args:
        model: The model, not wrapped. Where its weights are not there yet, nothing can be tried.
        head: The same model's.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    name = type(models.base_of_peft(models.unwrap(model))).__name__
    inputs = _inputs(model, head.layer)
    counted = [None, torch.tensor(7, device=head.layer.weight.device)] if models.accepts_loss_kwargs(model) else [None]
    with models.evaluating(model), torch.no_grad(), _strange_bias(head.layer):
        try:
            head.strength = _strength(model, inputs, head.layer)
            plain = [_plain_loss(model, inputs, items, head) for items in counted]
        except _FAILURES as failure:
            return f"{name} gives no loss of input_ids and labels alone ({type(failure).__name__}: {failure})"
        try:
            with head.instead_of_logits():
                found = [_loss(model, inputs, items) for items in counted]
        except _FAILURES as failure:
            return f"{name} does not take its loss from a loss_function of its logits ({type(failure).__name__}: {failure})"
        finally:
            head.strength, head.is_used = 1.0, False
    tolerance = torch.finfo(head.layer.weight.dtype).eps ** 0.5
    for own, other in zip(plain, found, strict=True):
        if not abs(own - other) <= tolerance * abs(own):
            return (
                f"{name} makes more of its logits than a scaled product: its loss would be {other:.5g}, not {own:.5g}"
            )
    return None


_FAILURES = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)


def _inputs(model: nn.Module, layer: nn.Linear) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    known = min(layer.out_features, getattr(embeddings, "num_embeddings", layer.out_features))
    tokens = torch.randint(known, _SHAPE, generator=generator)
    labels = tokens.clone()
    labels[0, 3] = labels[1, -2:] = IGNORE_INDEX
    device = layer.weight.device
    return {"input_ids": tokens.to(device), "labels": labels.to(device)}


def _loss(model: nn.Module, inputs: dict[str, Tensor], items: Tensor | None) -> float:
    counted = {} if items is None else {"num_items_in_batch": items}
    return float(loss_of(model(**inputs, **counted)))


def _plain_loss(model: nn.Module, inputs: dict[str, Tensor], items: Tensor | None, head: LossHead) -> float:
    """With logits, of hidden states that are as much larger."""
    layer = head.layer

    def stronger(hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden * head.strength, layer.weight, layer.bias)

    with attribute(layer, "forward", stronger):
        return _loss(model, inputs, items)


def _strength(model: nn.Module, inputs: dict[str, Tensor], layer: nn.Linear) -> float:
    """What hidden states are to be multiplied by."""
    seen: list[float] = []
    bias: Tensor | None = layer.bias

    def note(module: nn.Module, args: Any, logits: Tensor) -> None:
        seen.append(float((logits if bias is None else logits - bias).abs().max()))

    hook = layer.register_forward_hook(note)
    try:
        model(**inputs)
    finally:
        hook.remove()
    if not seen:
        raise ValueError("its output layer is not used")
    return _REACH / seen[-1] if seen[-1] > 0 else 1.0


@contextlib.contextmanager
def _strange_bias(layer: nn.Linear) -> Iterator[None]:
    """The layer's bias is one that cannot be overlooked."""
    bias: Tensor | None = layer.bias
    if bias is None:
        yield
        return
    kept = bias.detach().clone()
    strange = torch.randn(layer.out_features, generator=torch.Generator().manual_seed(1)) * 10
    bias.copy_(strange)
    try:
        yield
    finally:
        bias.copy_(kept)
