"""Layers that compute their activations again in the backward pass, in a model that knows nothing of it."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from mainspring.errors import OptionError, Problem
from mainspring.model import base_of_peft, unwrap

if TYPE_CHECKING:
    from mainspring.model_features.recompute import Recomputing

__all__ = ["repeated_layers", "start"]


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of every list in the model that holds several blocks of one class, in the order of the modules.

    A block is a module with modules in it, or of a class that is not torch's own. Of lists inside one another the
    outermost counts, but for lists of lists.
    """
    return list(dict.fromkeys(_repeated(model)))


def _repeated(module: nn.Module) -> list[nn.Module]:
    inside = [layer for child in module.children() for layer in _repeated(child)]
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return inside
    layers = list(module)
    if len(layers) < 2 or len({type(layer) for layer in layers}) > 1 or not _is_block(layers[0]):
        return inside
    return inside if inside and isinstance(layers[0], (nn.ModuleList, nn.Sequential)) else layers


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return False  # nobody calls it
    return any(True for _ in module.children()) or not type(module).__module__.startswith("torch.nn.")


def start(model: nn.Module, how: Recomputing, device: torch.device) -> Callable[[], None]:
    """Have the layers that repeat recompute their activations.

    Args:
        model: Any module.
        how: Which of the layers, and how.
        device: Where the model is trained.

    Returns:
        What ends it.

    Raises:
        OptionError: No layers repeat.
    """
    layers = repeated_layers(unwrap(model))
    if not layers:
        name = type(base_of_peft(unwrap(model))).__name__
        why = f"{name} has no list (torch.nn.ModuleList or Sequential) of several layers of one class"
        fix = "give it a method gradient_checkpointing_enable(gradient_checkpointing_kwargs=None), or leave it out"
        raise OptionError([Problem("activation_checkpointing", True, why, fix)])
    way = _Way(how, device.type)
    chosen = layers[:: how.every_n_layers]
    for layer in chosen:
        _change(layer, way)
    return functools.partial(_end, chosen, way)


def _change(layer: nn.Module, way: _Way) -> None:
    """The layer becomes one of a class derived from its own, under the same name, which its replicas share."""
    if not isinstance(layer, _Recomputed):
        written: Any = type(layer)
        layer.__class__ = _recomputed_class(written)
    layer.__dict__["_recomputing"] = way


@functools.cache
def _recomputed_class(cls: type[nn.Module]) -> type[nn.Module]:
    return type(cls.__name__, (_Recomputed, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def _end(layers: Sequence[nn.Module], way: _Way) -> None:
    for layer in layers:
        # Where sharding has put yet another class around it, this has to do.
        layer.__dict__["_recomputing"] = None
        if type(layer).__bases__[0] is _Recomputed:
            layer.__class__ = type(layer).__bases__[1]
            del layer.__dict__["_recomputing"]
    if not way.used:
        name = type(layers[0]).__name__
        warnings.warn(
            f"activation_checkpointing=True: had no effect, because no forward pass called a layer ({name}) itself",
            UserWarning,
            stacklevel=2,
        )


class _Recomputed(nn.Module):
    """Put before the class of a layer: its forward pass keeps nothing but its inputs."""

    _recomputing: _Way | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        way = self._recomputing
        if way is None or not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        return way.run(self, super().forward, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are of the class that was written."""
        if type(self).__bases__[0] is not _Recomputed:
            return super().__reduce_ex__(protocol)
        state = {name: value for name, value in self.__dict__.items() if name != "_recomputing"}
        return _blank, (type(self).__bases__[1],), state


def _blank(cls: type[nn.Module]) -> nn.Module:
    return cls.__new__(cls)


class _Way:
    """How layers recompute.

    Args:
        how: What was asked for.
        device_type: What kind of device the model is trained on.

    Attributes:
        used: Whether any layer has.
    """

    def __init__(self, how: Recomputing, device_type: str) -> None:
        self._keywords: dict[str, Any] = {"use_reentrant": False, **how.keywords}
        self._reentrant = how.reentrant
        self._storage: Callable[[], contextlib.AbstractContextManager[Any]] = (
            functools.partial(save_on_cpu, pin_memory=True, device_type=device_type)
            if how.offload
            else contextlib.nullcontext
        )
        self.used = False

    def run(self, layer: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One forward pass of a layer."""
        self.used = True
        # torch's older way passes gradients to positional arguments only.
        once: Callable[..., Any] = functools.partial(_with_keywords, forward, tuple(kwargs))
        inputs = (*args, *kwargs.values())
        if any(True for _ in layer.buffers()):
            once = _Twice(layer, once)
        if self._reentrant:
            inputs = _requiring_grad(inputs)
        with self._storage():
            return checkpoint(once, *inputs, **self._keywords)


def _with_keywords(forward: Any, names: tuple[str, ...], *inputs: Any) -> Any:
    split = len(inputs) - len(names)
    return forward(*inputs[:split], **dict(zip(names, inputs[split:], strict=True)))


def _requiring_grad(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """In torch's older way even parameters get no gradients, unless an input requires one."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if first is None or any(tensor.requires_grad for tensor in tensors):
        return inputs
    leaf = first.detach().requires_grad_()
    return tuple(leaf if value is first else value for value in inputs)


class _Twice:
    """A forward pass that changes the layer's buffers when it is made, and not when it is made again.

    Batch normalisation would count each batch twice in its running statistics.
    """

    def __init__(self, layer: nn.Module, forward: Any) -> None:
        self._layer = layer
        self._forward = forward
        self._made = False

    def __call__(self, *inputs: Any) -> Any:
        if self._made:
            with _buffers_kept(self._layer):
                return self._forward(*inputs)
        self._made = True
        return self._forward(*inputs)


@contextlib.contextmanager
def _buffers_kept(layer: nn.Module) -> Iterator[None]:
    """What happens to buffers meanwhile happens to copies of them."""
    held = [(module, dict(module._buffers)) for module in layer.modules() if module._buffers]
    try:
        for module, buffers in held:
            module._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
        yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)
