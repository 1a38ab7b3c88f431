"""From shards to whole tensors on the main process, and from its whole tensors to everybody's shards.

One tensor at a time, so that no device and no other process ever holds a whole model. torch's own way to a whole state on
the CPU (`full_state_dict=True` with `cpu_offload=True`) is not taken: it crashes the interpreter where the shards are on
the CPU themselves, and without `cpu_offload` every process would hold everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mainspring.errors import CheckpointError


def is_main() -> bool:
    """Whether this is the process that holds whole states."""
    return not dist.is_initialized() or dist.get_rank() == 0


def on_main_process(state: Any) -> Any:
    """Return a state with whole tensors on the CPU, on the main process; elsewhere what is of no use but takes part.

    Args:
        state: Nested dicts, lists and tuples of tensors and other values; the same names on every process.
    """
    if isinstance(state, dict):
        return {key: on_main_process(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(on_main_process(value) for value in state)
    if not isinstance(state, Tensor):
        return state
    whole = state.detach()
    if isinstance(whole, DTensor):
        whole = whole.full_tensor()  # of all processes
    return whole.cpu() if is_main() else None


class Shape:
    """What stands for a tensor of the main process in the state that it tells the others."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape = tensor.shape
        self.dtype = tensor.dtype


def told_by_main_process(state: Any) -> Any:
    """Return the main process's state with a `Shape` for every tensor, and its tensors beside it in the same order."""
    box = [_outline(state) if is_main() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def handed_out(outline: Any, state: Any, destination: Callable[[tuple[Any, ...], Shape], Tensor]) -> Any:
    """Return the main process's state with the tensors of `destination`, filled; every process calls it.

    Args:
        outline: From `told_by_main_process`.
        state: That of the main process; ignored elsewhere.
        destination: Makes, or finds, the tensor for what stands at a path; sharded as this process wants it.
    """

    def walk(path: tuple[Any, ...], here: Any, given: Any) -> Any:
        if isinstance(here, dict):
            return {key: walk((*path, key), value, given and given[key]) for key, value in here.items()}
        if isinstance(here, (list, tuple)):
            return type(here)(walk((*path, i), value, given and given[i]) for i, value in enumerate(here))
        if not isinstance(here, Shape):
            return here
        target = destination(path, here)
        _fill(target, here, given if is_main() else None)
        return target

    return walk((), outline, state if is_main() else None)


def _outline(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _outline(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_outline, state))
    return Shape(state) if isinstance(state, Tensor) else state


@torch.no_grad()
def _fill(target: Tensor, shape: Shape, given: Tensor | None) -> None:
    device = _meeting_place(target)
    whole = torch.empty(shape.shape, dtype=shape.dtype, device=device) if given is None else given.detach().to(device)
    whole = whole.contiguous()
    if dist.is_initialized():
        dist.broadcast(whole, src=0)
    copy_own_part(target, whole)


@torch.no_grad()
def copy_own_part(target: Tensor, whole: Tensor) -> None:
    """Fill this process's part of a tensor from the whole one."""
    if target.shape != whole.shape:
        raise CheckpointError(f"a tensor of shape {list(whole.shape)} does not fit one of {list(target.shape)}")
    if not isinstance(target, DTensor):
        target.copy_(whole)
        return
    sizes, starts = compute_local_shape_and_global_offset(whole.shape, target.device_mesh, target.placements)
    part = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    target.to_local().copy_(whole[part])


def _meeting_place(target: Tensor) -> torch.device:
    """The device on which the processes can send each other this tensor, also where it is kept on the CPU between uses."""
    if isinstance(target, DTensor):
        kind = target.device_mesh.device_type
        return (
            torch.device(kind, torch.get_device_module(kind).current_device()) if kind != "cpu" else torch.device(kind)
        )
    return _with_a_group(target.device)


def _with_a_group(device: torch.device) -> torch.device:
    """A device that the processes have a backend for."""
    if device.type != "cpu" or not dist.is_initialized() or "cpu:" in dist.get_backend_config():
        return device
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return torch.device(accelerator.type, torch.accelerator.current_device_index())
