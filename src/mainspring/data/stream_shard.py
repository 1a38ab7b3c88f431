"""The stream shard under the reference's parameter names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mainspring.data.samplers import IterableShard


class IterableDatasetShard(IterableShard):
    """:class:`~mainspring.data.samplers.IterableShard` as scripts construct it.

    Args:
        dataset: The stream, giving the same samples on every process.
        batch_size: Samples in a batch of one process.
        drop_last: Leave out a last block that is not full; else it is completed with samples of the first.
        num_processes: Number of processes.
        process_index: This process, from 0.
        seed: A stream without ``set_epoch`` but with a ``generator`` has it seeded with ``seed`` + epoch every epoch.
    """

    def __init__(
        self,
        dataset: Iterable[Any],
        batch_size: int = 1,
        drop_last: bool = False,
        num_processes: int = 1,
        process_index: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, rank=process_index, world_size=num_processes, seed=seed)

    @property
    def num_processes(self) -> int:
        """Number of processes."""
        return self.world_size

    @property
    def process_index(self) -> int:
        """This process, from 0."""
        return self.rank
