"""The norm of gradients that lie in pieces, where torch's own cannot be asked: each process's, and then of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, distributed as dist
from torch.distributed.tensor import DTensor

from mainspring.engines.dtensors import by_owners, piece


def norm_of_sharded(
    parameters: Iterable[Tensor], norm_type: float, device: torch.device, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The norm of all gradients together, 0-d on `device` and the same on every process; all of them call it.

    The pieces may lie elsewhere than the processes can send, as those that were moved to the host do: norms are sent.

    Args:
        parameters: Those whose gradients are meant.
        norm_type: Its order.
        device: Where the processes can send.
        group: The processes over which plain tensors are pieces of something; None: they are whole.
    """
    total = torch.zeros((), device=device)
    for some in by_owners(parameters):
        grads = [piece(p.grad) for p in some if p.grad is not None]
        power = _power(grads, norm_type, device)
        total = _joined(total, _over(power, _groups_of(some[0], group), norm_type), norm_type)
    return total if math.isinf(norm_type) else total ** (1.0 / norm_type)


def clip_sharded(parameters: Iterable[Tensor], max_norm: float, norm_of: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """Clip the gradients to a total norm of `max_norm`; returns the norm before, as `norm_of` gives it."""
    held = list(parameters)
    norm = norm_of(held)
    scale_sharded(held, norm, max_norm)
    return norm


def scale_sharded(parameters: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale the gradients down to `max_norm`, where `norm` is above it."""
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)  # torch's own guard against a norm of zero
    for parameter in parameters:
        if parameter.grad is not None:
            grad = piece(parameter.grad)
            grad.mul_(factor.to(grad.device))


def _power(grads: Sequence[Tensor], norm_type: float, device: torch.device) -> Tensor:
    """The sum of powers of one process's pieces, or their greatest value."""
    if not grads:
        return torch.zeros((), device=device)
    norm = torch.nn.utils.get_total_norm(grads, norm_type).to(device, torch.float32)
    return norm if math.isinf(norm_type) else norm**norm_type


def _joined(one: Tensor, other: Tensor, norm_type: float) -> Tensor:
    return torch.maximum(one, other) if math.isinf(norm_type) else one + other


def _over(power: Tensor, groups: Iterable[dist.ProcessGroup], norm_type: float) -> Tensor:
    for group in groups:
        dist.all_reduce(power, op=dist.ReduceOp.MAX if math.isinf(norm_type) else dist.ReduceOp.SUM, group=group)
    return power


def _groups_of(parameter: Tensor, group: dist.ProcessGroup | None) -> list[dist.ProcessGroup]:
    """The processes that hold the other pieces."""
    if not isinstance(parameter, DTensor):
        return [] if group is None else [group]
    mesh = parameter.device_mesh
    return [mesh.get_group(dim) for dim, placement in enumerate(parameter.placements) if not placement.is_replicate()]
