"""Samples of similar length near each other: less padding, and still a random order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import distributed as dist
from torch.utils.data import Sampler
from torch.utils.data.distributed import DistributedSampler

from mainspring.data.lengths import measured_lengths


def get_length_grouped_indices(
    lengths: Sequence[float] | np.ndarray[Any, Any],
    batch_size: int,
    mega_batch_mult: int | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """A random order in which neighbours have similar lengths.

    A random permutation is cut into mega-batches of ``mega_batch_mult * batch_size`` samples, each sorted from long to
    short; the longest sample of all is swapped to the front, so that a lack of memory shows at the first step.

    Args:
        lengths: Length of every sample.
        batch_size: Samples per batch.
        mega_batch_mult: Batches in a mega-batch; by default as many as give 4 mega-batches, at most 50, at least 1.
        generator: Source of the permutation; torch's global generator by default.

    Returns:
        Every index once.
    """
    if mega_batch_mult is None:
        mega_batch_mult = max(1, min(len(lengths) // (4 * batch_size), 50))
    permutation = torch.randperm(len(lengths), generator=generator).numpy()
    order, firsts = sorted_in_mega_batches(np.asarray(lengths), permutation, mega_batch_mult * batch_size)
    if len(order):
        longest = firsts[int(np.argmax(np.asarray(lengths)[order[firsts]]))]
        order[[0, longest]] = order[[longest, 0]]
    return cast("list[int]", order.tolist())


def sorted_in_mega_batches(
    lengths: np.ndarray[Any, Any], permutation: np.ndarray[Any, Any], size: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A permutation whose stretches of ``size`` are sorted from long to short, and where each stretch begins."""
    stretch = np.arange(len(permutation)) // size
    # The last key counts most; equal ones keep the order of the permutation.
    order = permutation[np.lexsort((-lengths[permutation], stretch))]
    return order, np.arange(0, len(permutation), size)


class LengthGroupedSampler(Sampler[int]):
    """Samples of similar length near each other, otherwise at random: :func:`get_length_grouped_indices`.

    Args:
        batch_size: Samples per batch.
        dataset: Measured when ``lengths`` is None; its samples are mappings.
        lengths: Length of every sample.
        model_input_name: The key whose value is measured; ``"input_ids"`` by default.
        generator: Source of the order; torch's global generator by default.

    Raises:
        ValueError: If neither ``dataset`` nor ``lengths`` is given, or the samples cannot be measured.
    """

    def __init__(
        self,
        batch_size: int,
        dataset: Any = None,
        lengths: Sequence[float] | torch.Tensor | None = None,
        model_input_name: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.lengths = _listed(dataset, lengths, model_input_name)
        self.generator = generator

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=self.generator))


def _listed(dataset: Any, lengths: Any, key: str | None) -> list[float]:
    if lengths is None:
        return cast("list[float]", measured_lengths(dataset, key or "input_ids"))
    return lengths.tolist() if isinstance(lengths, torch.Tensor) else list(lengths)


class DistributedLengthGroupedSampler(DistributedSampler[int]):
    """One process's share of a length-grouped order, which is drawn from ``seed`` and the epoch.

    The processes take turns, index by index. Loaders of the trainer share out batches themselves: this class is for
    loaders that a script builds.

    Args:
        batch_size: Samples per batch.
        dataset: Measured when ``lengths`` is None; its samples are mappings.
        num_replicas: Number of processes; those of torch's process group by default.
        rank: This process, from 0; likewise.
        seed: Seed of epoch 0.
        drop_last: Leave out the samples that are too few for every process; else some from the start fill up.
        lengths: Length of every sample.
        model_input_name: The key whose value is measured; ``"input_ids"`` by default.

    Raises:
        ValueError: If neither ``dataset`` nor ``lengths`` is given, or the samples cannot be measured.
    """

    def __init__(
        self,
        batch_size: int,
        dataset: Any = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
        lengths: Sequence[float] | torch.Tensor | None = None,
        model_input_name: str | None = None,
    ) -> None:
        # Not super().__init__: without a dataset there is nothing to tell it.
        self.batch_size = batch_size
        self.lengths = _listed(dataset, lengths, model_input_name)
        self.num_replicas = dist.get_world_size() if num_replicas is None else num_replicas
        self.rank = dist.get_rank() if rank is None else rank
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        enough = math.floor if drop_last else math.ceil
        self.num_samples = enough(len(self.lengths) / self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        filled = (order * math.ceil(self.total_size / max(1, len(order))))[: self.total_size]
        return iter(filled[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return self.num_samples
