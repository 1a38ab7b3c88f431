"""What scripts ask about the processes of a run, before there is a Trainer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

_ALONE = -1
"""The local rank of a process that no launcher started."""


def is_main_process(local_rank: int) -> bool:
    """Whether this is the first process of its machine, or the only one.

    Args:
        local_rank: Index of this process on its machine; -1 without a launcher.
    """
    return local_rank in (_ALONE, 0)


@contextmanager
def torch_distributed_zero_first(local_rank: int) -> Iterator[None]:
    """Run the body on the first process of each machine before the others, which then find its files in a cache.

    A body that fails on the first process still lets the others go on, so that the job ends with the error.

    Args:
        local_rank: Index of this process on its machine, such as `args.local_process_index`; -1 waits for nobody.

    Raises:
        RuntimeError: Several processes were launched but have not joined a process group yet.
    """
    if local_rank == _ALONE or not _have_joined():
        yield
        return
    if local_rank > 0:
        distributed.barrier()
    try:
        yield
    finally:
        if local_rank == 0:
            distributed.barrier()


def _have_joined() -> bool:
    """Whether there are processes to wait for; a lone one has none."""
    if distributed.is_available() and distributed.is_initialized():
        return True
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked > 1:
        raise RuntimeError(
            f"torch_distributed_zero_first: WORLD_SIZE={asked}, but the processes have not joined a group yet; read "
            "args.device first, which joins them, or use args.main_process_first()"
        )
    return False
