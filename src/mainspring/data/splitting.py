"""Batches that are meant for all processes together, divided among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

from torch.utils.data import BatchSampler

from mainspring.data.samplers import yields_batches


def share_of_batch(batch_size: int, world_size: int) -> int:
    """Samples of one process's batch, where ``batch_size`` is that of all of them.

    Raises:
        ValueError: If it cannot be divided.
    """
    share, rest = divmod(batch_size, world_size)
    if rest:
        raise ValueError(
            f"split_batches=True divides batches of {batch_size} samples among {world_size} processes: "
            "use a batch size that is a multiple of their number"
        )
    return share


class Pieces(BatchSampler):
    """The batches of a batch sampler, each cut into one piece for every process.

    Args:
        batches: A batch sampler whose batches have one size, but for the last.
        world_size: Number of processes.

    Raises:
        ValueError: If the batches have no common size, or one that cannot be divided.
    """

    def __init__(self, batches: Iterable[list[int]], world_size: int) -> None:
        size = getattr(batches, "batch_size", None)
        if not isinstance(size, int):
            raise ValueError(
                f"split_batches=True needs batches of one size, and {type(batches).__name__} has no batch_size: "
                "give it one, or leave split_batches out"
            )
        self.sampler: Any = batches
        self.batch_size = share_of_batch(size, world_size)
        self.drop_last = bool(getattr(batches, "drop_last", False))
        self.world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        """Tell it to the batch sampler, and to the sampler inside."""
        for sampler in (self.sampler, getattr(self.sampler, "sampler", None)):
            set_epoch = getattr(sampler, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.sampler:
            for start in range(0, len(batch), self.batch_size):
                yield batch[start : start + self.batch_size]

    def __len__(self) -> int:
        return len(cast(Sized, self.sampler)) * self.world_size  # the last batch may have fewer pieces


def split_order(order: Iterable[Any], world_size: int) -> Iterable[Any]:
    """An order whose batches, if it gives batches, are cut into pieces; single indices as they are."""
    return Pieces(order, world_size) if yields_batches(order) else order
