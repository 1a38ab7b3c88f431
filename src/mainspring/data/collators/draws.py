"""The random numbers of a collator that has a seed of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from mainspring.data.random_stream import batch_place, mixed


def _torch_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


_MAKE: dict[str, Callable[[int], Any]] = {"pt": _torch_generator, "np": np.random.default_rng}


def shuffled(generator: Any, count: int) -> list[int]:
    """The numbers below ``count`` in random order, drawn from a generator of either framework."""
    if isinstance(generator, torch.Generator):
        return torch.randperm(count, generator=generator).tolist()
    return generator.permutation(count).tolist()  # type: ignore[no-any-return]


class SeededDraws:
    """Generators for a collator with a seed.

    In a loader that says which batch is made, the numbers of a batch are a function of the seed, the epoch and the
    batch's number: neither the workers nor a resume change them. Anywhere else one generator goes on from batch to
    batch, in each worker its own.
    """

    def __init__(self) -> None:
        self._lasting: dict[str, tuple[int, int | None, Any]] = {}

    def generator(self, seed: int, framework: str) -> Any:
        """What the batch that is made now draws from.

        Args:
            seed: The collator's.
            framework: ``"pt"`` for a ``torch.Generator``, ``"np"`` for a ``numpy.random.Generator``.
        """
        place = batch_place()
        return self._continued(seed, framework) if place is None else _MAKE[framework](mixed(seed, *place))

    def _continued(self, seed: int, framework: str) -> Any:
        info = get_worker_info()
        worker = None if info is None else info.id
        found = self._lasting.get(framework)
        # Copies in workers hold what the training process had drawn from, or nothing: each begins one of its own.
        if found is None or found[:2] != (seed, worker):
            found = seed, worker, _MAKE[framework](seed + (worker or 0))
            self._lasting[framework] = found
        return found[2]
