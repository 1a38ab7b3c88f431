"""`torch.compile`: by which backend, for which sizes of batches, and with what it goes together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mainspring.errors import OptionError, Problem, did_you_mean


@dataclass(frozen=True)
class Backend:
    """A backend in the place of one of Accelerate's `DynamoBackend`, which knows fewer than torch.

    Attributes:
        value: Its name.
    """

    value: str


def compilation(backend: str | None, mode: str | None) -> TorchDynamoPlugin:
    """How Accelerate is to compile models.

    Args:
        backend: One that torch knows, or None to compile nothing.
        mode: One of those of inductor, or None for the default.

    Raises:
        OptionError: There is no such backend, or no such mode.
    """
    if backend is None:
        return TorchDynamoPlugin(backend="no")
    _check_backend(backend.lower())
    _check_mode(backend.lower(), mode)
    plugin = TorchDynamoPlugin(backend="eager", mode=mode or "default")
    plugin.backend = Backend(backend.lower())
    return plugin


def _check_backend(backend: str) -> None:
    known = torch._dynamo.list_backends(None)
    if backend not in known:
        why = f"torch has no such backend here{did_you_mean(backend, known)}"
        fix = f"use one of {', '.join(known)}, or import the package that brings it before the trainer is built"
        raise OptionError([Problem("torch_compile_backend", backend, why, fix)])


def _check_mode(backend: str, mode: str | None) -> None:
    if mode in (None, "default"):
        return
    if backend != "inductor":
        why = f"torch_compile_backend is {backend!r}, and modes are inductor's"
        raise OptionError([Problem("torch_compile_mode", mode, why, "leave one of the two out")])
    known = list(torch._inductor.list_mode_options())
    if mode not in known:
        why = f"inductor has no such mode{did_you_mean(mode, known)}"
        raise OptionError([Problem("torch_compile_mode", mode, why, f"use one of {', '.join(known)}")])


def check_recomputing(plugin: TorchDynamoPlugin) -> None:
    """Refuse a backend with which recomputed activations would be others than those of the forward pass.

    What torch makes of `checkpoint` in a compiled model leaves the random numbers to what divides the graph into a forward
    and a backward part. A backend that runs the graph as it is draws new ones, and gradients are those of another dropout.
    Of any backend but inductor, a small graph is asked.

    Raises:
        OptionError: It is such a backend.
    """
    backend = plugin.to_kwargs()["backend"]
    if backend != "inductor" and not _recomputes_alike(plugin):
        why = "where activations are recomputed it draws other random numbers, and gradients of dropout would be wrong"
        fix = "use inductor or aot_eager, or leave gradient_checkpointing (activation_checkpointing) out"
        raise OptionError([Problem("torch_compile_backend", backend, why, fix)])


def _recomputes_alike(plugin: TorchDynamoPlugin) -> bool:
    """Whether the gradient of a sum of numbers, some of which are left out, is that of those that are not."""

    def some(numbers: Tensor) -> Tensor:
        return checkpoint(nn.functional.dropout, numbers, use_reentrant=False)  # type: ignore[no-any-return]

    numbers = torch.ones(64, requires_grad=True)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        left = torch.compile(some, **plugin.to_kwargs())(numbers)
        left.sum().backward()
    return numbers.grad is not None and torch.equal(left, numbers.grad)


def watch_sizes(placed: nn.Module) -> nn.Module:
    """Have a compiled model know which sizes of its inputs vary; any other module is left alone."""
    if isinstance(placed, torch._dynamo.eval_frame.OptimizedModule):
        placed.register_forward_pre_hook(VaryingSizes(), with_kwargs=True)
    return placed


class VaryingSizes:
    """Tells the compiler, at a model's door, which dimensions of its inputs have several sizes.

    A model is compiled for the sizes of its first batch, which is best where all have these. Once the length of sequences
    is another, the compiler makes code for any length; without a word from here it would do so once more when the batch
    size changes, at the last batch of an epoch or in an evaluation, and for each input by itself.
    """

    def __init__(self) -> None:
        self._first: dict[Any, torch.Size] = {}
        self._varying: set[int] = set()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the inputs of a forward pass, and mark them."""
        for name, tensor in _tensors(args, kwargs):
            first = self._first.setdefault(name, tensor.shape)
            both = zip(
                tensor.shape, first, strict=False
            )  # an input may have more dimensions in one batch than in another
            self._varying.update(index for index, (size, before) in enumerate(both) if size != before)
        if not self._varying:
            return
        for _, tensor in _tensors(args, kwargs):
            for dimension in {0, *self._varying}:
                if dimension < tensor.dim():
                    torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor) and value.dim() > 0:
            yield name, value
