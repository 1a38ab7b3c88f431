"""Data parallel over processes with torch's `DistributedDataParallel`: gradients are averaged over the ranks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from mainspring.engines.base import SingleProcess, WrapOptions, global_rows, real_rows

if TYPE_CHECKING:
    from mainspring.engines.accelerator import MainspringAccelerator


class DDP(SingleProcess):
    """One process per rank, the same model on each, gradients averaged at the last micro-batch of an update."""

    def __init__(self, accelerator: MainspringAccelerator, wrap: WrapOptions) -> None:
        super().__init__(accelerator, wrap)
        asked = int(os.environ.get("WORLD_SIZE", self.world_size))
        if not dist.is_initialized() or dist.get_world_size() != asked or self.world_size != asked:
            joined = dist.get_world_size() if dist.is_initialized() else 1
            raise RuntimeError(
                f"the launcher asked for {asked} processes but this one sees a world of {joined}: "
                "training would run as separate jobs that each report success"
            )

    def prepare(self, model: nn.Module) -> nn.Module:
        """Place `model` and wrap it in torch's `DistributedDataParallel`."""
        placed = self.place(model)
        if not any(parameter.requires_grad for parameter in placed.parameters()):
            raise ValueError("the model has no parameter that requires a gradient: there is nothing to train")
        device_ids = None if self.device.type == "cpu" else [self.device.index]
        wrapped = DistributedDataParallel(placed, device_ids=device_ids, **self.wrap_options.given())
        assert dist.get_world_size(wrapped.process_group) == self.world_size
        return wrapped

    def accumulate(self, model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Reduce gradients in the last micro-batch of an update only."""
        self.accelerator.gradient_state.sync_gradients = sync
        if sync or not isinstance(model, DistributedDataParallel):
            return contextlib.nullcontext()
        return model.no_sync()

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a 0-d tensor over all ranks, on the host."""
        return float(self.sum(value.detach().clone().float()).item()) / self.world_size

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, on the device; `value` stays as it is."""
        total = value.detach().clone().to(self.device)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total

    def share(self, value: Any) -> Any:
        """The first rank's `value`."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    def evaluation_batches(self, loader: Iterable[Any], cut_filling: bool = True) -> Iterator[tuple[Any, int | None]]:
        """As in one process; in the last round this rank's batch is cut to its own samples.

        The loader fills the last round up with samples from the start, so that all ranks go through the same
        collectives. A rank with no sample of its own keeps its filling, with `real` 0.
        """
        size = global_rows(loader, self.world_size)
        prepared = super().evaluation_batches(loader)
        if size is None or not cut_filling:
            yield from prepared
            return
        samples, rows_per_round = size
        batch_size = rows_per_round // self.world_size
        for index, (batch, _) in enumerate(prepared):
            real = real_rows(samples, batch_size, self.rank, self.world_size, index)
            yield (_first_rows(batch, real, batch_size) if 0 < real < batch_size else batch), real

    def fill_rows(self, tensors: Any, real: int | None, loader: Iterable[Any]) -> Any:
        """Repeat the last row of a shortened batch's outputs: gathering wants equal shapes, and cuts the repeats off."""
        size = global_rows(loader, self.world_size)
        if size is None or real is None or real == 0:
            return tensors
        return _repeat_last_row(tensors, real, size[1] // self.world_size)


def _map_rows(data: Any, rows: int, change: Any) -> Any:
    """Apply `change` to every tensor in a nested structure that has `rows` rows."""
    if isinstance(data, torch.Tensor):
        return change(data) if data.ndim and data.shape[0] == rows else data
    if isinstance(data, Mapping):
        changed = {key: _map_rows(value, rows, change) for key, value in data.items()}
        return type(data)(changed)  # type: ignore[call-arg]
    if isinstance(data, (list, tuple)):
        return type(data)(_map_rows(value, rows, change) for value in data)
    return data


def _first_rows(data: Any, keep: int, rows: int) -> Any:
    return _map_rows(data, rows, lambda tensor: tensor[:keep])


def _repeat_last_row(data: Any, have: int, want: int) -> Any:
    if have >= want:
        return data
    return _map_rows(data, have, lambda tensor: torch.cat([tensor, tensor[-1:].expand(want - have, *tensor.shape[1:])]))
