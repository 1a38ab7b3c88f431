"""A model whose output layer gives the loss rather than logits, for as long as a forward pass takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mainspring import model as models
from mainspring.chunked_loss.kernels import summed_loss
from mainspring.errors import OptionError, Problem
from mainspring.loss import IGNORE_INDEX

_SOFTCAP = "final_logit_softcapping"
"""Where configurations of transformers say that logits are squeezed by a tanh."""


class LossHead:
    """Forward passes with labels that end in a loss, and never have logits.

    Within `instead_of_logits` the output layer hands hidden states through as they are; what the model does to them as
    logits, such as scaling, is linear and does the same to the logits that they stand for. The model's `loss_function`
    is then given them, and asks the layer a second time, with the targets: it computes the loss by itself, so that what
    gathers its weights for a forward pass (FSDP) does so for this one. The output has no `logits`.

    Nothing of the model is changed outside of the context, and the functions that are put in are always the same, so
    that a compiled model is compiled once.

    Args:
        model: The model, wrapped or not.

    Attributes:
        layer: The output layer.
        strength: What hidden states are multiplied by, to see what becomes of them.
        is_used: Whether a loss has been computed.

    Raises:
        ValueError: It has no plain linear output layer; the message says why.
    """

    def __init__(self, model: nn.Module) -> None:
        self._core: Any = models.base_of_peft(models.unwrap(model))
        self.layer = output_layer(self._core)
        config: Any = getattr(self._core, "config", None)
        self._config: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
        self._softcap: float | None = getattr(self._config, _SOFTCAP, None)
        self._forward: Callable[..., Any] | None = None
        self._lean: Callable[..., Any] | None = None
        # Neither a loop over chunks nor torch's operator can be traced. Said here: saying so imports the whole compiler.
        self._summed_loss: Callable[..., Tensor] = torch.compiler.disable(summed_loss)
        self.strength = 1.0
        self.is_used = False

    def check_use(self) -> None:
        """Refuse to go on after a step of training that did without.

        Raises:
            OptionError: No loss has been computed yet.
        """
        if not self.is_used:
            why = "the model was given no labels, or called by a training_step that has a body of its own"
            fix = "leave it out, or have the model compute the loss within the training_step of Trainer"
            raise OptionError([Problem("chunked_cross_entropy", True, why, fix)])

    @contextlib.contextmanager
    def instead_of_logits(self) -> Iterator[None]:
        """Forward passes of the model give a loss where they are given labels, and no logits in any case."""
        with contextlib.ExitStack() as until_then:
            for owner, name, value in self._changes():
                until_then.enter_context(attribute(owner, name, value))
            yield

    def _changes(self) -> list[tuple[Any, str, Any]]:
        changes = [
            (self.layer, "forward", self._of_layer),
            (self._core, loss_attribute(self._core), self._loss),
            (self._core, "forward", self._without_logits()),
        ]
        return changes if self._softcap is None else [*changes, (self._config, _SOFTCAP, None)]

    def _of_layer(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """What stands for logits; with targets, the sum of the losses."""
        if targets is None:
            return hidden * self.strength if self.strength != 1.0 else hidden
        return self._summed_loss(hidden, self.layer.weight, self.layer.bias, targets, self._softcap)

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = IGNORE_INDEX,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """A `loss_function`, of hidden states instead of logits.

        Args:
            logits: The hidden states, of shape (..., tokens, width).
            labels: Of shape (..., tokens); each is what the token before is to predict.
            vocab_size: Not needed.
            num_items_in_batch: What the sum is divided by; default: the targets that count.
            ignore_index: Targets of this value do not count.
            shift_labels: The targets themselves, in place of labels.
            **kwargs: Not needed.
        """
        if shift_labels is None:
            shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        self.is_used = True
        targets = shift_labels.reshape(-1).to(logits.device)
        counts = targets != ignore_index
        layer = self._core.get_output_embeddings()  # or what was put around it since
        total = layer(logits.reshape(-1, logits.shape[-1]), targets.masked_fill(~counts, IGNORE_INDEX))
        # Where no target counts the loss is no number, but gradients are 0, as with logits: infinity times 0 would not be.
        total = torch.where(counts.any(), total, total.detach())
        items = counts.sum() if num_items_in_batch is None else num_items_in_batch
        loss: Tensor = total / (items.to(total.device) if isinstance(items, Tensor) else items)
        return loss

    def _without_logits(self) -> Callable[..., Any]:
        """The model's forward as it is now, with what stands for logits taken out of its output."""
        now = self._core.forward
        if self._lean is None or self._forward != now:
            self._forward, self._lean = now, _lean(now)
        return self._lean


def _lean(forward: Callable[..., Any]) -> Callable[..., Any]:
    def lean(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        if isinstance(outputs, Mapping):
            kept = {name: value for name, value in outputs.items() if name != "logits"}
            return type(outputs)(**kept)
        return (outputs[0], None, *outputs[2:]) if isinstance(outputs, tuple) else outputs

    return lean


def output_layer(core: Any) -> nn.Linear:
    """The model's output embeddings.

    Raises:
        ValueError: There are none, or they are more than a linear layer.
    """
    name = type(core).__name__
    find = getattr(core, "get_output_embeddings", None)
    layer = find() if callable(find) else None
    if layer is None:
        raise ValueError(f"{name} has no get_output_embeddings() that returns its output layer")
    kind = type(layer).__name__
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise ValueError(f"the output layer of {name} is a {kind}, not a plain linear layer")
    if "forward" in vars(layer):
        raise ValueError(f"the output layer of {name} has a forward pass of its own, as offloaded layers have")
    return layer


def loss_attribute(core: Any) -> str:
    """Where a model keeps the loss function that it was given: transformers' models have a property in front of it."""
    return "_loss_function" if isinstance(getattr(type(core), "loss_function", None), property) else "loss_function"


_NOTHING = object()


@contextlib.contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An object has an attribute of its own for now, and then what it had before."""
    own = vars(owner)
    before = own.get(name, _NOTHING)
    own[name] = value
    try:
        yield
    finally:
        if before is _NOTHING:
            del own[name]
        else:
            own[name] = before
