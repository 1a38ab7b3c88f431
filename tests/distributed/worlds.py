"""What worlds of one, two and four processes found: each launched once, for all tests that ask."""

from __future__ import annotations

import atexit
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.distributed import worker_worlds
from tests.distributed.launch import torchrun

SEVERAL = (2, 4)


@functools.cache
def found(world: int) -> list[dict[str, Any]]:
    """What each process of a world found."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    out = Path(folder.name)
    if world == 1:
        return [worker_worlds.collect(out, 1)]
    torchrun("tests.distributed.worker_worlds", str(out), processes=world)
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(world)]
