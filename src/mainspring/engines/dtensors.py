"""Parameters in pieces (`DTensor`), of one mesh or of several: whole tensors from pieces and back, steps.

torch's fused steps take tensors of one mesh only, and its loading of weights takes no plain ones. Here they are sorted
first, or laid out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.optim import Optimizer

# ---- one tensor ----


def whole(tensor: Tensor) -> Tensor:
    """The tensor whole; all processes of its mesh call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def piece(tensor: Tensor) -> Tensor:
    """What of the tensor lies on this process, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, in pieces as `like` lies; on all of its mesh where the shapes differ."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    mesh = like.device_mesh
    placements = like.placements if tensor.shape == like.shape else [Replicate()] * mesh.ndim
    return distribute_tensor(tensor.to(mesh.device_type), mesh, placements, src_data_rank=None)


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The mesh over which a tensor lies in pieces; None: it is whole on every process."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def by_mesh(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors sorted by mesh, in the order in which their meshes first come."""
    sorted_: dict[DeviceMesh | None, list[Tensor]] = {}
    for tensor in tensors:
        sorted_.setdefault(mesh_of(tensor), []).append(tensor)
    return list(sorted_.values())


def by_owners(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors sorted by which processes hold pieces of them, and which hold the same."""
    sorted_: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        alike = tuple(p.is_replicate() for p in tensor.placements) if isinstance(tensor, DTensor) else ()
        sorted_.setdefault((mesh_of(tensor), alike), []).append(tensor)
    return list(sorted_.values())


# ---- gradients ----


def settle(parameters: Iterable[Tensor]) -> None:
    """Lay gradients out as their parameters: some come whole, or as summands of which every process holds one."""
    for parameter in parameters:
        grad = parameter.grad
        if isinstance(parameter, DTensor) and isinstance(grad, DTensor) and grad.placements != parameter.placements:
            parameter.grad = grad.redistribute(placements=parameter.placements)


# ---- weights ----


def takes_whole_weights(model: nn.Module) -> None:
    """Let `model.load_state_dict` take whole tensors: each becomes the piece that lies here."""
    model.register_load_state_dict_pre_hook(_lay_out)


def _lay_out(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = module.state_dict(keep_vars=True)
    for name, value in state.items():
        target = own.get(name.removeprefix(prefix))
        if isinstance(target, Tensor) and isinstance(value, Tensor) and value.shape == target.shape:
            state[name] = laid_out(value.to(target.dtype), target)


# ---- the optimizer ----


def step_by_mesh(optimizer: Optimizer) -> None:
    """One step. Fused and foreach kernels take the parameters of one mesh at a time; others all at once."""
    groups = optimizer.param_groups
    kinds = by_mesh(parameter for group in groups for parameter in group["params"])
    if len(kinds) == 1 or not any(group.get("fused") or group.get("foreach") for group in groups):
        optimizer.step()
        return
    everything = [group["params"] for group in groups]
    try:
        for kind in kinds:
            chosen = {id(parameter) for parameter in kind}
            for group, parameters in zip(groups, everything, strict=True):
                group["params"] = [parameter for parameter in parameters if id(parameter) in chosen]
            optimizer.step()
    finally:
        for group, parameters in zip(groups, everything, strict=True):
            group["params"] = parameters
