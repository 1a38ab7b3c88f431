"""Models that break, each in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 4
SAMPLES = 5


class Times(nn.Module):
    """Multiplies by a number, which may be too much for the type."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class HalfPrecision(nn.Module):
    """Holds what goes through it as float16 would: above 65504 is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 1000).half().float() / 1000


class Root(nn.Module):
    """The square root of the magnitude, whose derivative at 0 is none."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().sqrt()


@dataclass
class Output:
    """What a model may return."""

    loss: Tensor | None
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class Model(nn.Module):
    """A stack between two layers; returns a loss where there are labels.

    Args:
        inside: What stands in the stack, after one linear layer.
        pack: How loss, prediction and hidden values are returned.
    """

    def __init__(self, *inside: nn.Module, pack: Callable[..., Any] = Output) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.stack = nn.Sequential(nn.Linear(WIDTH, WIDTH), *inside)
        self.head = nn.Linear(WIDTH, 1)
        self._pack = pack

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        hidden = self.stack(torch.tanh(self.first(x)))
        prediction = self.head(hidden).squeeze(-1)
        loss = None if labels is None else nn.functional.mse_loss(prediction, labels)
        return self._pack(loss, prediction, (hidden,))


def handing_on(model: Model, gain: float = 1.0) -> Model:
    """The model, whose first two layers hand on `gain * tanh(x)`."""
    with torch.no_grad():
        for layer, factor in ((model.first, 1.0), (model.stack[0], gain)):
            layer.weight.copy_(factor * torch.eye(WIDTH))
            layer.bias.zero_()
    return model


def as_mapping(loss: Any, logits: Tensor, hidden: Any) -> dict[str, Any]:
    return {"loss": loss, "logits": logits, "hidden": list(hidden)}


def as_tuple(loss: Any, logits: Tensor, hidden: Any) -> tuple[Any, ...]:
    return (loss, logits, hidden)


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.rand(SAMPLES, WIDTH, generator=generator) + 0.1,
            "labels": torch.randn(SAMPLES, generator=generator),
        }
        for _ in range(count)
    ]


def loss_of(outputs: Any) -> Tensor:
    if isinstance(outputs, tuple):
        return outputs[0]
    return outputs["loss"] if isinstance(outputs, dict) else outputs.loss


def run(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Forward and backward."""
    loss = loss_of(model(**batch))
    loss.backward()
    return loss.detach()
