"""Building the ``DataLoader`` of one process."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from mainspring.data.drawn import DrawnLoader
from mainspring.data.random_stream import DataStream, mixed
from mainspring.data.samplers import DealtBatches, IterableShard, seeded
from mainspring.data.shared import Dealt, SharedLoader
from mainspring.data.splitting import share_of_batch, split_order
from mainspring.data.steady import steady
from mainspring.data.together import AllShares, Channel, DispatchedLoader
from mainspring.data.uneven import divides_itself
from mainspring.processes import side_channel

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


Reader = Literal["each", "first", "shards"]
"""``"each"``: every process reads what is its own, and all of a stream. ``"first"``: the first process reads, and sends.
``"shards"``: of a stream that has a shard for every process, each reads whole ones. A stream that gives each process
samples of its own is read by each, whatever is asked."""

READERS: Mapping[bool | None, Reader] = MappingProxyType({None: "each", True: "first", False: "shards"})
"""Who reads, by the setting `dispatch_batches`."""


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
    split: bool = False,
    reader: Reader = "each",
    channel: Channel = side_channel,
) -> SharedLoader:
    """Build the loader of one process.

    The loader has no generator of its own, so each iterator made from it draws one number from torch's global one.

    Args:
        dataset: Map-style or iterable.
        batch_size: Samples in a batch of one process, or with ``split`` of all processes.
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
        split: Divide each batch among the processes.
        reader: Who reads.
        channel: Gives the processes that share the data, where one of them reads for all.

    Raises:
        ValueError: If a batch is to be split and cannot be.
    """
    parts = _Parts(
        dataset,
        share_of_batch(batch_size, world_size) if split else batch_size,
        drop_last,
        _Sharing(rank, world_size, even, reader),
        options.as_arguments() | {"collate_fn": collate_fn, "worker_init_fn": worker_init_fn},
        None if isinstance(dataset, _PIPES) else stream,
    )
    if isinstance(dataset, IterableDataset):
        loader, apart = parts.of_stream(seed or 0)
    else:
        order = SequentialSampler(dataset) if sampler is None else sampler
        order = seeded(order, torch.initial_seed() if seed is None else seed)
        if parts.stream is not None:
            order = steady(order, batch_size, drop_last, parts.stream)
        loader, apart = parts.of_order(split_order(order, world_size) if split else order), False
    loader.dealt = Dealt(world_size, even, apart)
    if isinstance(loader, DispatchedLoader):
        loader.channel = channel
    return loader


class _Sharing(NamedTuple):
    rank: int
    world_size: int
    even: bool
    reader: Reader


@dataclass(frozen=True)
class _Parts:
    """What a loader is made of."""

    dataset: Any
    batch_size: int
    drop_last: bool
    sharing: _Sharing
    arguments: dict[str, Any]
    stream: DataStream | None

    def of_order(self, order: Iterable[Any]) -> SharedLoader:
        """A loader of map-style data."""
        sharing = self.sharing
        rules = (order, self.batch_size, self.drop_last, sharing.rank, sharing.world_size, sharing.even)
        arguments = self.arguments | {"batch_sampler": DealtBatches(*rules)}
        if not self._dispatches:
            return self._make(self.stream)(self.dataset, **arguments)
        source = self._source(self.dataset, {"batch_sampler": AllShares(*rules)})
        return DispatchedLoader(self.dataset, source, sharing.rank, sharing.world_size, **arguments)

    def of_stream(self, seed: int) -> tuple[SharedLoader, bool]:
        """A loader of iterable data, and whether each process reads data of its own."""
        own = None if self.sharing.world_size == 1 else self._own_stream()
        return (self._shared_stream(seed), False) if own is None else (self._apart(own), True)

    def _own_stream(self) -> Any:
        """What this process alone reads; None where all read the same."""
        sharing, dataset = self.sharing, self.dataset
        if divides_itself(dataset):
            return dataset
        if sharing.reader == "shards" and has_shards(dataset, sharing.world_size):
            return dataset.shard(num_shards=sharing.world_size, index=sharing.rank)
        return None

    def _apart(self, dataset: Any) -> SharedLoader:
        # Two processes read other samples here: they are not to draw the same numbers for them.
        apart = self.stream and replace(self.stream, seed=mixed(self.stream.seed, self.sharing.rank))
        arguments = self.arguments | {"batch_size": self.batch_size, "drop_last": self.drop_last}
        return self._make(apart)(dataset, **arguments)

    def _shared_stream(self, seed: int) -> SharedLoader:
        sharing, dataset = self.sharing, self.dataset
        arguments = self.arguments | {"batch_size": self.batch_size, "drop_last": self.drop_last}
        if sharing.world_size == 1:
            return self._make(self.stream)(dataset, **arguments)
        # Where every process reads the whole stream, all end at the same time, whatever shards it has.
        rules = (self.drop_last, sharing.rank, sharing.world_size, seed, sharing.even)
        share = IterableShard(dataset, self.batch_size, *rules)
        if not self._dispatches:
            return self._make(self.stream)(share, **arguments)
        rounds = IterableShard(dataset, self.batch_size * sharing.world_size, self.drop_last, 0, 1, seed, sharing.even)
        sizes = {"batch_size": self.batch_size, "drop_last": self.drop_last}
        return DispatchedLoader(share, self._source(rounds, sizes), sharing.rank, sharing.world_size, **arguments)

    @property
    def _dispatches(self) -> bool:
        return self.sharing.reader == "first" and self.sharing.world_size > 1

    def _source(self, dataset: Any, batches: dict[str, Any]) -> SharedLoader:
        """The loader of the process that reads for all: what it draws is what each process would draw for itself."""
        alone = None if self.stream is None else DataStream(self.stream.seed)
        return self._make(alone)(dataset, **{**self.arguments, **batches, "pin_memory": False})

    @staticmethod
    def _make(stream: DataStream | None) -> Callable[..., SharedLoader]:
        return SharedLoader if stream is None else partial(DrawnLoader, stream=stream)


def has_shards(dataset: object, world_size: int) -> bool:
    """Whether this is a stream of ``datasets`` with a shard for every process."""
    kind = getattr(sys.modules.get("datasets"), "IterableDataset", ())
    return isinstance(dataset, kind) and getattr(dataset, "num_shards", 0) >= world_size
