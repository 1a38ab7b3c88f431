"""A loader whose batches draw their random numbers from the data's own stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mainspring.data.batches import MapBatches, Places, StreamBatches
from mainspring.data.random_stream import DataStream, seed_generators
from mainspring.data.resumable import Resumable, obstacle
from mainspring.data.samplers import DealtBatches
from mainspring.data.shared import SharedLoader

_HANDED_ON = ("pin_memory", "pin_memory_device", "timeout", "generator")
_HANDED_ON_TO_WORKERS = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context", "in_order")


class DrawnLoader(SharedLoader):
    """A ``DataLoader`` whose samples and batches draw from a :class:`~mainspring.data.random_stream.DataStream`.

    Its attributes (``dataset``, ``batch_sampler``, ``collate_fn``, ...) are those of a plain one. It iterates through an
    inner loader whose items are whole batches: only so is the number of a batch known where the batch is made.

    Every iterator draws one number from torch's global generator, as a plain loader's does when its workers are new.

    Args:
        dataset: Map-style or iterable.
        stream: Where the random numbers come from.
        arguments: Those of ``DataLoader``. For map-style data ``batch_sampler`` is a :class:`DealtBatches`.

    Attributes:
        told_obstacle: The last :meth:`obstacle` that was logged: it stays the same from checkpoint to checkpoint.
    """

    def __init__(self, dataset: Any, stream: DataStream, **arguments: Any) -> None:
        super().__init__(dataset, **arguments)
        self.stream = stream
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu")
        if self.persistent_workers:
            self._epoch.share_memory_()  # workers that read a stream learn of a new epoch by it
        self._inner: DataLoader[Any] | None = None
        self._read: StreamBatches | None = None
        self._entry: tuple[int, Any, bool] | None = None
        self.told_obstacle: str | None = None

    def set_epoch(self, epoch: int) -> None:
        """Draw the random numbers of ``epoch`` in iterations from now on; before the first call, those of epoch 0."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Any:
        return self.placed(self._begin())

    def _begin(self) -> Iterator[Any]:
        if self._inner is None:
            # Not made before it is needed: until then collate_fn, num_workers, ... may be set, as on a plain loader.
            inner = self._inner_loader()
            self._inner = inner if inner.persistent_workers else None
            return iter(inner)
        # Torch draws when it starts workers only; but a run that is resumed in this epoch would start them now.
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        return iter(self._inner)

    def _inner_loader(self) -> DataLoader[Any]:
        names = _HANDED_ON + _HANDED_ON_TO_WORKERS if self.num_workers else _HANDED_ON
        arguments = {name: getattr(self, name) for name in names if hasattr(self, name)}
        if isinstance(self.dataset, IterableDataset):
            arguments["dataset"] = self._stream_batches()
        else:
            assert isinstance(self.batch_sampler, DealtBatches)
            arguments["dataset"] = MapBatches(self.dataset, self.collate_fn, self.stream, int(self._epoch))
            arguments["sampler"] = Places(self.batch_sampler, self._epoch)
        start = WorkerStart(self.stream, int(self._epoch), self.worker_init_fn)
        return DataLoader(batch_size=None, collate_fn=_unchanged, worker_init_fn=start, **arguments)

    def _stream_batches(self) -> StreamBatches:
        assert self.batch_size is not None
        entry, self._entry = self._entry, None
        resumable = Resumable(self.dataset) if self._obstacle_to_reading() is None else None
        dataset = self.dataset if resumable is None else resumable.dataset
        batches = StreamBatches(dataset, self.collate_fn, self.stream, self._epoch, self.batch_size, self.drop_last)
        batches.resumable, batches.entry = resumable, entry
        self._read = batches
        return batches

    # ---- the position in a stream ----

    def obstacle(self) -> str | None:
        """Why the place where the last iterator stands cannot be saved, and entered, exactly; None if it can."""
        if self._read is not None and self._read.replay_differs:
            return "it draws random numbers in steps that would be taken again"
        return self._obstacle_to_reading()

    def _obstacle_to_reading(self) -> str | None:
        if not isinstance(self.dataset, IterableDataset):
            return "map-style data needs none"
        if self.num_workers:
            return "worker processes read ahead of it"
        return obstacle(self.dataset)

    def position(self) -> dict[str, Any] | None:
        """The place after the last batch handed out; None where there is an obstacle, or nothing was handed out."""
        return None if self._read is None or self.obstacle() is not None else self._read.position()

    def enter(self, skip: int, position: Mapping[str, Any]) -> str | None:
        """Make the next iterator, and only that one, begin after ``skip`` batches, at a saved :meth:`position`.

        Returns:
            None, or the reason why that cannot be done.
        """
        reason = self._obstacle_to_reading()
        if reason is None:
            assert self.batch_size is not None
            samples = skip * self.batch_size * self.stream.world_size
            wanted = Resumable(self.dataset).place(int(self._epoch), samples)
            different = [name for name, value in wanted.items() if position.get(name) != value]
            reason = f"it was saved with another {', '.join(different)}" if different else None
        if reason is None:
            self._entry = skip, position["state"], bool(position.get("ended"))
        return reason


def _unchanged(batch: Any) -> Any:
    return batch


class WorkerStart:
    """What every worker does first: it takes its seed, and shows user code its own dataset, not the one around it."""

    def __init__(self, stream: DataStream, epoch: int, then: Callable[[int], None] | None) -> None:
        self.stream = stream
        self.epoch = epoch
        self.then = then

    def __call__(self, worker: int) -> None:
        """Start worker number ``worker``."""
        seed = self.stream.worker(self.epoch, worker)
        seed_generators(seed)
        info: Any = get_worker_info()
        for name, value in (("seed", seed), ("dataset", info.dataset.dataset)):
            object.__setattr__(info, name, value)  # read-only for others
        if self.then is not None:
            self.then(worker)
