"""What worlds of one, two and four processes found: each launched once, for all tests that ask."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.distributed import worker_worlds
from tests.distributed.launch import torchrun
from tests.helpers.once import once

SEVERAL = (2, 4)
results = Path()
"""Where the launches of a test run leave what they found; a fixture says so."""


@functools.cache
def found(world: int) -> list[dict[str, Any]]:
    """What each process of a world found."""
    if world == 1:
        with tempfile.TemporaryDirectory() as folder:
            return [worker_worlds.collect(Path(folder), 1)]
    out = once(
        results, f"world-{world}", lambda out: torchrun("tests.distributed.worker_worlds", str(out), processes=world)
    )
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(world)]
