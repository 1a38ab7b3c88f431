"""Building the ``DataLoader`` of one process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from mainspring.data.drawn import DrawnLoader
from mainspring.data.random_stream import DataStream
from mainspring.data.samplers import DealtBatches, IterableShard, seeded

_PIPES = tuple(getattr(torch.utils.data, name, ()) for name in ("IterDataPipe", "MapDataPipe"))
_KNOWS_IN_ORDER = "in_order" in inspect.signature(DataLoader.__init__).parameters  # torch >= 2.6


@dataclass(frozen=True)
class LoaderOptions:
    """The ``dataloader_*`` options.

    Attributes:
        num_workers: Processes that read and collate; 0 does it in the training process.
        pin_memory: Copy batches to page-locked memory, from which an accelerator reads without waiting. Without an
            accelerator it does nothing.
        persistent_workers: Keep the workers from epoch to epoch.
        prefetch_factor: Batches each worker prepares ahead; torch's default (2) if None.
        multiprocessing_context: ``"fork"``, ``"spawn"`` or ``"forkserver"``; the platform's default if None.
        in_order: Return batches in order even if a later one is ready first. Ignored by torch < 2.6, which always does.
    """

    num_workers: int = 0
    pin_memory: bool = True
    persistent_workers: bool = False
    prefetch_factor: int | None = None
    multiprocessing_context: str | None = None
    in_order: bool = True

    def as_arguments(self) -> dict[str, Any]:
        """The same as keyword arguments of ``torch.utils.data.DataLoader``."""
        arguments = {
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory and _pinning_helps(),
            "persistent_workers": self.persistent_workers,
            "prefetch_factor": self.prefetch_factor,
            "multiprocessing_context": self.multiprocessing_context,
        }
        return {**arguments, "in_order": self.in_order} if _KNOWS_IN_ORDER else arguments


class Dealt(NamedTuple):
    """How a loader's samples are shared; found as its attribute ``dealt``. Loaders without it give all to everyone.

    Attributes:
        world_size: Number of processes that share them.
        even: Whether the last round is completed with samples from the start.
    """

    world_size: int
    even: bool


def _pinning_helps() -> bool:
    if hasattr(torch, "accelerator"):
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return device is not None and device.type != "mps"  # MPS shares the host's memory
    return torch.cuda.is_available()


def build_loader(
    dataset: Any,
    *,
    batch_size: int,
    collate_fn: Callable[[list[Any]], Any],
    sampler: Iterable[Any] | None,
    drop_last: bool,
    rank: int,
    world_size: int,
    options: LoaderOptions,
    worker_init_fn: Callable[[int], None] | None = None,
    seed: int | None = None,
    even: bool = True,
    stream: DataStream | None = None,
) -> DataLoader[Any]:
    """Build the loader of process ``rank``.

    The loader has no generator of its own, so each iterator made from it draws one number from torch's global one.

    Args:
        dataset: Map-style or iterable.
        batch_size: Samples in a batch of one process.
        collate_fn: Makes a batch of a list of samples.
        sampler: Global order of a map-style dataset, as indices or as batches of them; None for the dataset's own
            order. Iterable data has none.
        drop_last: Leave out batches that are not full.
        rank: This process, from 0.
        world_size: Number of processes.
        options: How to load.
        worker_init_fn: Called in every worker with its number.
        seed: Seed of a plain ``RandomSampler``; torch's initial seed if None.
        even: Give every process the same number of full batches, see :class:`DealtBatches`.
        stream: Where samples and batches draw their random numbers from. With None they take what the global generators
            of the process (or worker) give, and so do torch's data pipes, which seed themselves.
    """
    arguments = options.as_arguments() | {"collate_fn": collate_fn, "worker_init_fn": worker_init_fn}
    make: Callable[..., DataLoader[Any]] = DataLoader
    if stream is not None and not isinstance(dataset, _PIPES):
        make = partial(DrawnLoader, stream=stream)
    if isinstance(dataset, IterableDataset):
        if world_size > 1:
            # Every process reads the whole stream: shards of their own would end at different times, and the processes
            # would wait for each other forever.
            dataset = IterableShard(dataset, batch_size, drop_last, rank, world_size, seed or 0, even)
        loader = make(dataset, batch_size=batch_size, drop_last=drop_last, **arguments)
    else:
        order = SequentialSampler(dataset) if sampler is None else sampler
        order = seeded(order, torch.initial_seed() if seed is None else seed)
        batches = DealtBatches(order, batch_size, drop_last, rank, world_size, even)
        loader = make(dataset, batch_sampler=batches, **arguments)
    loader.dealt = Dealt(world_size, even)
    return loader
