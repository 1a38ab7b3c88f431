"""The states of models in FSDP's first form, whose parameters are flat: torch's own helpers know how they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel

from mainspring.checkpoint.sharded.parameter_names import by_names
from mainspring.checkpoint.sharded.whole import is_main

if TYPE_CHECKING:
    from torch.optim import Optimizer


def is_wrapped(model: nn.Module) -> bool:
    """Whether the model is in `FullyShardedDataParallel`, or a part of it is."""
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def sharded_model_state(model: nn.Module) -> dict[str, Any]:
    """Each process's shards."""
    return get_model_state_dict(model)


def whole_model_state(model: nn.Module) -> dict[str, Any]:
    """The whole state on the CPU of the main process."""
    return _on_main(get_model_state_dict(model, options=_whole(model)))


def put_model_state(model: nn.Module, state: dict[str, Any]) -> None:
    """From the main process's whole state."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, dict(state), options=options)


def put_sharded_model_state(model: nn.Module, state: dict[str, Any]) -> None:
    """From each process's shards."""
    set_model_state_dict(model, dict(state), options=StateDictOptions(strict=False))


def sharded_optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Each process's shards."""
    return get_optimizer_state_dict(model, optimizer)


def whole_optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The whole state on the CPU of the main process."""
    return _on_main(get_optimizer_state_dict(model, optimizer, options=_whole(model)))


def put_optimizer_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """From the main process's whole state, by names or by numbers."""
    state = by_names(model, optimizer, state) if is_main() else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    with _empty_groups_kept(optimizer):
        set_optimizer_state_dict(model, optimizer, state, options=options)


def put_sharded_optimizer_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """From each process's shards."""
    with _empty_groups_kept(optimizer):
        set_optimizer_state_dict(model, optimizer, state)


@contextlib.contextmanager
def _empty_groups_kept(optimizer: Optimizer) -> Iterator[None]:
    """A group without parameters keeps its options; torch's helper takes them away, and the next step fails."""
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    yield
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update({key: value for key, value in own.items() if key not in group})


def _whole(model: nn.Module) -> StateDictOptions:
    # Straight to the CPU only from elsewhere: from the CPU itself the two together crash the interpreter.
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return StateDictOptions(full_state_dict=True, cpu_offload=not on_cpu)


def _on_main(state: Any) -> dict[str, Any]:
    if not is_main():
        return {}
    found: dict[str, Any] = torch.utils._pytree.tree_map_only(torch.Tensor, lambda value: value.detach().cpu(), state)
    return found
