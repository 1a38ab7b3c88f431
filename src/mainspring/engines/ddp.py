"""Data parallel over processes with torch's `DistributedDataParallel`: gradients are averaged over the ranks."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from mainspring.data.samplers import mark_last
from mainspring.engines.base import SingleProcess, WrapOptions

if TYPE_CHECKING:
    from mainspring.engines.accelerator import MainspringAccelerator


class DDP(SingleProcess):
    """One process per rank, the same model on each, gradients averaged at the last micro-batch of an update."""

    def __init__(self, accelerator: MainspringAccelerator, wrap: WrapOptions) -> None:
        super().__init__(accelerator, wrap)
        self._round: Round | None = None
        self._question: tuple[dist.Work, torch.Tensor] | None = None
        self._side_channel: dist.ProcessGroup | None = None
        _leave_at_exit()
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
        """Reduce gradients in the last micro-batch of an update only, unless in each."""
        self.accelerator.gradient_state.sync_gradients = sync
        if sync or self.sync_each_batch or not isinstance(model, DistributedDataParallel):
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

    def share(self, value: Any, source: int = 0) -> Any:
        """The `value` of the rank `source`."""
        box = [value]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        return any(self._each(flag))

    def agree(self, wish: bool) -> bool:
        """What any rank wished by the question before; this question's sum travels while the next update computes."""
        if self._side_channel is None:
            self._side_channel = dist.new_group(backend="gloo")  # of its own: no order with the gradients' collectives
        answer = False
        if self._question is not None:
            work, wishes = self._question
            work.wait()
            answer = bool(wishes.item())
        wishes = torch.tensor([wish], dtype=torch.int32)
        self._question = dist.all_reduce(wishes, op=dist.ReduceOp.MAX, group=self._side_channel, async_op=True), wishes
        return answer

    def evaluation_batches(self, loader: Iterable[Any]) -> Iterator[tuple[Any, list[int] | None]]:
        """As in one process. Where the ranks share the data unevenly, they agree in each round on who has how many rows.

        A rank whose share is used up goes through the same collectives with a batch of which no row counts.
        """
        if hasattr(loader, "end_of_dataloader") and self.exact_rows:
            yield from self._prepared_batches(loader)
            return
        dealt = getattr(loader, "dealt", None)
        if dealt is None or dealt.even:
            yield from super().evaluation_batches(loader)
            return
        with self._end_marker() as marker:
            for (batch, rows), is_last in mark_last(self._rounds(loader)):
                if is_last:
                    marker.close(remainder=-1)
                self._round = Round(rows, _row_count(batch))
                yield batch, rows
                self._round = None

    def _prepared_batches(self, loader: Any) -> Iterator[tuple[Any, list[int] | None]]:
        """The batches of a loader that Accelerate shares, the last one without its filling."""
        for batch in loader:
            held = _row_count(batch)
            if not loader.end_of_dataloader or loader.remainder <= 0:
                yield batch, None
                continue
            rows = [min(max(loader.remainder - rank * held, 0), held) for rank in range(self.world_size)]
            own = rows[self.rank] or held
            self._round = Round(rows, own)
            yield _first_rows(batch, held, own), rows
            self._round = None

    def _rounds(self, loader: Iterable[Any]) -> Iterator[tuple[Any, list[int]]]:
        """`(batch, rows of each rank)` until no rank has any row left."""
        batches, filling = iter(loader), None
        while True:
            batch = next(batches, None)
            rows = self._each(0 if batch is None else _row_count(batch))
            if not any(rows):
                return
            if filling is None and 0 in rows:  # some rank never had a batch: give it one of another's
                filling = self.share(batch, source=next(rank for rank, count in enumerate(rows) if count))
            filling = filling if batch is None else batch
            yield filling, rows

    def _each(self, count: int) -> list[int]:
        """A whole number of every rank."""
        own = torch.tensor([count], device=self.device)
        every = [torch.zeros_like(own) for _ in range(self.world_size)]
        dist.all_gather(every, own)
        return [int(other.item()) for other in every]

    def gather_rows(self, data: Any, as_objects: bool) -> Any:
        """Each rank's own rows, in the order of the ranks."""
        if self._round is None:
            return None
        rows, held = self._round
        if as_objects:
            every: list[Any] = [None] * self.world_size
            dist.all_gather_object(every, data)
            return [item for part, count in zip(every, rows, strict=True) for item in part[:count]]
        return _map_rows(data, held, lambda tensor: self._gather_tensor(tensor, rows))

    def _gather_tensor(self, tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
        width = max(rows)  # collectives want equal shapes
        fitted = tensor[:width]
        if fitted.shape[0] < width:
            fitted = torch.cat([fitted, fitted[-1:].expand(width - fitted.shape[0], *fitted.shape[1:])])
        every = self.accelerator.gather(fitted.contiguous()).split(width)
        return torch.cat([part[:count] for part, count in zip(every, rows, strict=True)])


@functools.cache
def _leave_at_exit() -> None:
    """Leave the process group before the interpreter goes: gloo's threads otherwise abort some exits, with status -6."""
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


class Round(NamedTuple):
    """One round of an evaluation: the rows that each rank contributes, and those of the batch that this one holds."""

    rows: list[int]
    held: int


def _row_count(batch: Any) -> int:
    """Rows of a batch: those of its first tensor."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((count for part in parts if (count := _row_count(part))), 0)


def _first_rows(data: Any, rows: int, keep: int) -> Any:
    """The first `keep` rows of every tensor that has `rows` rows."""
    return _map_rows(data, rows, lambda tensor: tensor[:keep])


def _map_rows(data: Any, rows: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply `change` to every tensor in a nested structure that has `rows` rows."""
    if isinstance(data, torch.Tensor):
        return change(data) if data.ndim and data.shape[0] == rows else data
    if isinstance(data, Mapping):
        changed = {key: _map_rows(value, rows, change) for key, value in data.items()}
        return type(data)(changed)  # type: ignore[call-arg]
    if isinstance(data, (list, tuple)):
        return type(data)(_map_rows(value, rows, change) for value in data)
    return data
