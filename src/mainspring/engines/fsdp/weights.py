"""The weights that a sharded model begins with: those of the first process, whatever the others have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.distributed.tensor import DTensor

from mainspring.checkpoint.sharded import put_model_state
from mainspring.engines.processes import send


def weights_to_hand_out(model: nn.Module) -> dict[str, Any]:
    """The whole weights of the first process, which holds on to them while the model is sharded; {} elsewhere.

    Raises:
        RuntimeError: The first process has no weights either.
    """
    absent: list[Any] = [[name for name, tensor in model.state_dict().items() if _is_meta(tensor)]]
    dist.broadcast_object_list(absent, src=0)  # so that all raise, and none waits for the first one
    if absent[0]:
        raise RuntimeError(
            f"the first process has no weights for {absent[0][0]} and {len(absent[0]) - 1} more (they are on the meta "
            "device): load the model there before it is given to the Trainer"
        )
    if dist.get_rank() != 0:
        return {}
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in model.state_dict().items()}


def hand_out(
    model: nn.Module, whole: dict[str, Any], device: torch.device, *, rests_on: torch.device | None = None
) -> None:
    """Give every process its pieces of the first one's weights, and all of its buffers.

    Args:
        model: Sharded; what of it is on the meta device gets memory first.
        whole: What `weights_to_hand_out` gave before.
        device: Where the model computes.
        rests_on: Where its parameters are between uses, if not there.
    """
    place = {True: rests_on or device, False: device}  # by whether a tensor is in pieces: buffers are whole

    def real(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=place[isinstance(tensor, DTensor)]) if _is_meta(tensor) else tensor

    model._apply(real)
    put_model_state(model, whole)
    saved = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name not in saved:
            send(buffer)


def send_whole(model: nn.Module) -> None:
    """Give every process the first one's weights and buffers, while they are whole on each."""
    for tensor in (*model.parameters(), *model.buffers()):
        send(tensor)


def to_memory(model: nn.Module) -> None:
    """Give what is on the meta device memory on the CPU, of no value yet; tied parameters stay tied."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        held: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in held:
            for name, tensor in tensors.items():
                if _is_meta(tensor):
                    tensors[name] = made.setdefault(id(tensor), _empty(tensor))


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="cpu")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"
