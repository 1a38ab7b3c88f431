"""What scripts ask about the processes of a run, before there is a Trainer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

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


def limit_of_collectives() -> timedelta:
    """After how long torch gives up a collective: `ddp_timeout`, or what a script gave when it formed the group."""
    group: Any = distributed.distributed_c10d._get_default_group()
    backend = group._get_backend(group._device_types[0])
    known: timedelta | None = getattr(getattr(backend, "options", None), "_timeout", None)
    return distributed.default_pg_timeout if known is None else known


def side_channel(ranks: Sequence[int] | None = None) -> distributed.ProcessGroup:
    """A group over gloo, beside the one of the gradients; every process of the run calls this.

    Args:
        ranks: Its members; None for all.
    """
    # Left to itself, torch gives every further group its own default of half an hour.
    limit = limit_of_collectives()
    group: distributed.ProcessGroup = distributed.new_group(
        None if ranks is None else list(ranks), backend="gloo", timeout=limit
    )
    return group


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
