"""Contexts at whose end things are what they were at its beginning: each takes care of one kind of thing."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mainspring.data.foreign_loaders import generators, go_back, is_stateful, parts
from mainspring.seeding import capture_host_rng, restore_rng

if TYPE_CHECKING:
    from mainspring.trainer import Trainer


@contextlib.contextmanager
def random_numbers(trainer: Trainer) -> Iterator[None]:
    """The random streams of this process."""
    states = trainer._random_states()
    try:
        yield
    finally:
        restore_rng(states, distributed=trainer._is_distributed())


@contextlib.contextmanager
def attributes(thing: Any, but: tuple[str, ...] = ()) -> Iterator[None]:
    """The attributes of an object, which are the same objects again; `but` some of them."""
    kept = dict(vars(thing))
    try:
        yield
    finally:
        present = {name: value for name, value in vars(thing).items() if name in but}
        vars(thing).clear()
        vars(thing).update({**kept, **present})


@contextlib.contextmanager
def engine_state(engine: Any) -> Iterator[None]:
    """A model stays placed, as after an evaluation: to place it again would prepare it twice."""
    scaler, gradients = engine.scaler, engine.accelerator.gradient_state
    scale = None if scaler is None else copy.deepcopy(scaler.state_dict())
    sync = gradients.sync_gradients
    with attributes(engine, but=("_placed",)):
        try:
            yield
        finally:
            gradients.sync_gradients = sync
            if scaler is not None:
                scaler.load_state_dict(scale)


@contextlib.contextmanager
def optimizer_state(optimizer: Any) -> Iterator[None]:
    """An optimizer that was given: its state and groups, without the changes of type that loading a state may make."""
    if optimizer is None:
        yield
        return
    state = {parameter: copy.deepcopy(dict(held)) for parameter, held in optimizer.state.items()}
    groups = [{key: _copied(value) for key, value in group.items()} for group in optimizer.param_groups]
    try:
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, kept in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(kept)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@contextlib.contextmanager
def tensors(model: nn.Module) -> Iterator[None]:
    """Trained weights and buffers, of which a copy is kept in host memory, and gradients."""
    buffers = {module: dict(module._buffers) for module in model.modules()}
    changing = [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]
    kept = [tensor.detach().to("cpu", copy=True) for tensor in changing]
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for module, held in buffers.items():
            module._buffers.clear()
            module._buffers.update(held)
        with torch.no_grad():
            for tensor, value in zip(changing, kept, strict=True):
                tensor.copy_(value)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@contextlib.contextmanager
def hooks(model: nn.Module) -> Iterator[None]:
    """Hooks that an optimizer leaves on parameters, and which would keep it alive."""
    known = {(p, kind): set(getattr(p, kind) or ()) for p in model.parameters() for kind in _HOOKS}
    try:
        yield
    finally:
        for (parameter, kind), before in known.items():
            present = getattr(parameter, kind) or {}
            for handle in set(present) - before:
                del present[handle]


_PLAIN = (bool, int, float, str, type(None))


@contextlib.contextmanager
def module_values(model: nn.Module) -> Iterator[None]:
    """Numbers and words in modules' attributes: counters, and whether they train."""
    kept = [(m, {name: value for name, value in vars(m).items() if isinstance(value, _PLAIN)}) for m in model.modules()]
    try:
        yield
    finally:
        for module, values in kept:
            vars(module).update(values)


@contextlib.contextmanager
def place_of_loader(loader: Any) -> Iterator[None]:
    """Where a loader stands that a script made itself, and may make no new one of."""
    start = {"random": capture_host_rng(), "generators": copy.deepcopy(generators(loader))}
    stateful = [part for part in parts(loader) if is_stateful(part)]
    states: list[Any] = [copy.deepcopy(part.state_dict()) for part in stateful]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        go_back(loader, start)
        for part, state in zip(stateful, states, strict=True):
            part.load_state_dict(state)  # type: ignore[attr-defined]
