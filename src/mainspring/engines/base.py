"""The engine of one process: every verb in a line or three. Other engines override what differs, and only that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mainspring.data.samplers import mark_last

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from mainspring.engines.accelerator import MainspringAccelerator

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@dataclass(frozen=True)
class WrapOptions:
    """The `ddp_*` options; None leaves torch's default."""

    find_unused_parameters: bool | None = None
    bucket_cap_mb: int | None = None
    broadcast_buffers: bool | None = None
    static_graph: bool | None = None

    def given(self) -> dict[str, Any]:
        """The options that were set, as keywords of `DistributedDataParallel`."""
        return {name: value for name, value in vars(self).items() if value is not None}


class SingleProcess:
    """One process, one device.

    Attributes:
        accelerator: The `accelerate.Accelerator` that holds device, precision and scaler.
        rank: Index of this process, 0 here.
        world_size: Number of processes, 1 here.
        step_was_skipped: Whether the last `step` was left out for an fp16 overflow.
        sync_each_batch: Whether gradients are reduced with every micro-batch, rather than with the last of an update.
        exact_rows: Whether evaluations leave out the rows that only fill up a batch which Accelerate has shared.
    """

    def __init__(self, accelerator: MainspringAccelerator, wrap: WrapOptions) -> None:
        self.accelerator = accelerator
        self.wrap_options = wrap
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes
        self.scaler: torch.amp.GradScaler | None = accelerator.scaler
        self.step_was_skipped = False
        self.exact_rows = True
        self.sync_each_batch = False
        self.optimizer: Optimizer | None = None
        self._unscaled = False
        self._placed: tuple[nn.Module, nn.Module] | None = None

    # ---- the model ----

    def place(self, model: nn.Module) -> nn.Module:
        """Prepare `model` for forward passes only: device, autocast, compilation. The same model is prepared once."""
        if not self.is_placed(model):
            self._placed = (model, self.accelerator.prepare_model(model, evaluation_mode=True))
        assert self._placed is not None
        return self._placed[1]

    def is_placed(self, model: nn.Module) -> bool:
        """Whether `place` has seen this model."""
        return self._placed is not None and self._placed[0] is model

    def prepare(self, model: nn.Module) -> nn.Module:
        """Prepare `model` for training; what comes back is what `trainer.model_wrapped` is."""
        return self.place(model)

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` on the device. A copy from pinned memory to a GPU does not wait for what the GPU is doing."""
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")

    # ---- one update ----

    def accumulate(self, model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """The context of one micro-batch; `sync` is True for the last one of an update."""
        self.accelerator.gradient_state.sync_gradients = sync
        return _NOTHING

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Backpropagate `loss`, a scalar."""
        if self.scaler is None:
            loss.backward(**kwargs)
        else:
            self.scaler.scale(loss).backward(**kwargs)

    def prepare_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Take note of the run's optimizer, whose gradients `unscale` works on, and return it ready to step."""
        self.optimizer = optimizer
        return optimizer

    def unscale(self, optimizer: Optimizer | None = None) -> None:
        """Divide the gradients by the loss scale, at most once per update."""
        optimizer = optimizer or self.optimizer
        if self.scaler is None or self._unscaled or optimizer is None:
            return
        self.scaler.unscale_(getattr(optimizer, "optimizer", optimizer))  # Accelerate's wrapper hides the real one
        self._unscaled = True

    def clip_grad_norm(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
    ) -> torch.Tensor:
        """Clip to a total norm of `max_norm`; returns the norm before clipping, 0-d on the device."""
        if self.scaler is not None:
            self.unscale()
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    def grad_norm(self, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
        """The total norm of the gradients, which stay as they are."""
        if self.scaler is not None:
            self.unscale()
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def step(self, optimizer: Optimizer) -> None:
        """One optimizer step; with a scaler it may be skipped, which `step_was_skipped` then says."""
        if self.scaler is None:
            optimizer.step()
            return
        before = self.scaler.get_scale()
        self.scaler.step(getattr(optimizer, "optimizer", optimizer))
        self.scaler.update()
        self._unscaled = False
        self.step_was_skipped = self.scaler.get_scale() < before

    # ---- between processes ----

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a 0-d tensor over all processes, on the host."""
        return float(value.item())

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, on the device."""
        return value

    def share(self, value: Any, source: int = 0) -> Any:
        """The `value` of the process `source`, a picklable object."""
        return value

    def barrier(self) -> None:
        """Wait until every process is here."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag

    def agree(self, wish: bool) -> bool:
        """Whether all processes act on a wish that any of them had. Each must ask equally often.

        The answer is the same everywhere, and may be one question late: nobody waits for the others' present wishes.
        """
        return wish

    # ---- evaluation ----

    def evaluation_batches(self, loader: Iterable[Any]) -> Iterator[tuple[Any, list[int] | None]]:
        """Yield `(batch, rows)` for an evaluation; `rows` are those that each process contributes, None for all of it.

        While the last batch is out, `accelerator.gather_for_metrics` knows what only filled it up.
        """
        if hasattr(loader, "end_of_dataloader"):  # prepared by Accelerate: it does its own book-keeping
            for batch in loader:
                yield batch, None
            return
        with self._end_marker() as marker:
            for batch, is_last in mark_last(loader):
                if is_last:
                    marker.close(_remainder(loader, self.world_size))
                yield batch, None

    @contextlib.contextmanager
    def _end_marker(self) -> Iterator[EndMarker]:
        marker = EndMarker()
        self.accelerator.gradient_state._add_dataloader(marker)
        try:
            yield marker
        finally:
            self.accelerator.gradient_state._remove_dataloader(marker)

    def gather_rows(self, data: Any, as_objects: bool) -> Any:
        """Gather what each process contributes to the round that `evaluation_batches` has out; None outside of one."""
        return None


class EndMarker:
    """What Accelerate's gradient state asks of the loader in use."""

    def __init__(self) -> None:
        self.end_of_dataloader = False
        self.remainder = -1

    def close(self, remainder: int) -> None:
        """The last batch is out; `remainder` samples of its round count, or all of them where it is -1 or 0."""
        self.end_of_dataloader = True
        self.remainder = remainder


def _remainder(loader: Iterable[Any], world_size: int) -> int:
    """Samples of the last round that are no filling; -1 where that cannot be known, or where nothing is filled up."""
    if world_size == 1 or getattr(loader, "dealt", None) is None:
        return -1  # each process goes through all of its own
    batches = getattr(loader, "batch_sampler", None)
    batch_size = getattr(batches, "batch_size", None) or getattr(loader, "batch_size", None)
    try:
        samples = len(loader.dataset)  # type: ignore[attr-defined]
    except (TypeError, AttributeError):
        return -1
    return samples % (batch_size * world_size) if batch_size else -1
