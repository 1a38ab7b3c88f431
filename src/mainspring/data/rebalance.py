"""Micro-batches of nearly equal cost: fewer samples where they are long, more where they are short.

The samples of an update are sorted by length and cut into as many groups as it has micro-batches over all processes.
Where the cuts are is found step by step: the dearest group hands a sample on to the cheapest, until a state comes round
again. An update has the same number of samples in every epoch; only how they fall into micro-batches changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from mainspring.data.lengths import as_lengths

QUADRATIC_COST_COEF = 0.001
"""Weight of attention, which grows with the square of the length, beside all that grows with the length itself."""


def cost_of(rows: int, longest: int) -> float:
    """What a micro-batch costs whose rows are padded to the longest."""
    return rows * longest + QUADRATIC_COST_COEF * rows * longest**2


def balanced_groups(lengths: Sequence[int], groups: int, world_size: int) -> list[slice]:
    """Cut samples into groups of nearly equal cost.

    Args:
        lengths: From long to short; at least as many as groups.
        groups: How many, a multiple of ``world_size``.
        world_size: Groups that are trained on at once, and wait for the slowest of them.

    Returns:
        Where each group lies among the samples.
    """
    sizes = _Search(lengths, groups, world_size).best()
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


@dataclass
class _Search:
    lengths: Sequence[int]
    groups: int
    world_size: int
    counts: list[int] = field(init=False)
    settled: set[int] = field(init=False, default_factory=set)

    def best(self) -> list[int]:
        """The group sizes whose costs lie closest together, of those that the search comes across."""
        size, rest = divmod(len(self.lengths), self.groups)
        self.counts = [size + (group < rest) for group in range(self.groups)]
        best, spread, seen = self.counts, float("inf"), set()
        while tuple(self.counts) not in seen and len(self.settled) < self.groups:
            seen.add(tuple(self.counts))
            costs = self._costs()
            open_groups = [group for group in range(self.groups) if group not in self.settled]
            open_costs = [costs[group] for group in open_groups]
            if max(open_costs) - min(open_costs) < spread:
                best, spread = list(self.counts), max(open_costs) - min(open_costs)
            if not self._move_one(costs, open_groups):
                break
        return best

    def _move_one(self, costs: list[float], open_groups: list[int]) -> bool:
        """From the dearest group to the cheapest; what is with a dearest one of a single sample is settled."""
        dearest = max(open_groups, key=costs.__getitem__)
        if self.counts[dearest] == 1:
            self._settle(costs, dearest)
            return True
        others = [group for group in open_groups if group != dearest]
        if not others:
            return False
        self.counts[dearest] -= 1
        self.counts[min(others, key=costs.__getitem__)] += 1
        return True

    def _settle(self, costs: list[float], dearest: int) -> None:
        """What is trained on at once with a group that cannot shrink may take up to as much as that costs."""
        order = sorted(range(self.groups), key=lambda group: -costs[group])
        slot = order.index(dearest) // self.world_size * self.world_size
        # A set, in whose order the groups are filled: another one would give other groups than the reference's.
        together = set(order[slot : slot + self.world_size])
        for group in together:
            if group != dearest:
                self._fill(group, together, costs[dearest])
        self.settled |= together

    def _fill(self, group: int, together: set[int], limit: float) -> None:
        while True:
            costs, longest = self._costs(), self.lengths[sum(self.counts[:group])]
            givers = [g for g, c in enumerate(self.counts) if c > 1 and g not in together and g not in self.settled]
            if not givers or cost_of(self.counts[group] + 1, longest) > limit:
                return
            self.counts[min(givers, key=costs.__getitem__)] -= 1
            self.counts[group] += 1

    def _costs(self) -> list[float]:
        starts = [0, *accumulate(self.counts)]
        return [cost_of(count, self.lengths[start]) for count, start in zip(self.counts, starts, strict=False)]


def update_batches(
    indices: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], accumulation: int, world_size: int
) -> list[list[int]]:
    """The micro-batches of one update: those that are trained on at once beside each other, the dearest first.

    Args:
        indices: The update's samples, at least one for each micro-batch.
        lengths: Of all samples.
        accumulation: Micro-batches of one process.
        world_size: Number of processes.
    """
    order = indices[np.argsort(-lengths[indices], kind="stable")]
    sizes = lengths[order].tolist()
    groups = balanced_groups(sizes, accumulation * world_size, world_size)
    groups.sort(key=lambda group: -cost_of(group.stop - group.start, sizes[group.start]))
    return [order[group].tolist() for group in groups]


class BatchRebalanceSampler(Sampler["list[int]"]):
    """One process's micro-batches, balanced over processes and over the micro-batches of an update.

    Loaders of the trainer share out batches themselves: this class is for loaders that a script builds.

    Args:
        lengths: Length of every sample.
        effective_batch_size: Samples of an update over all processes.
        dp_size: Number of processes.
        grad_accum: Micro-batches of an update in one process.
        shuffle: Draw the samples of an update at random.
        seed: Seed of epoch 0.
        rank: This process, from 0.
        drop_last: Leave out the last update where it is not full.
    """

    QUADRATIC_COST_COEF = QUADRATIC_COST_COEF

    def __init__(
        self,
        lengths: Sequence[int],
        effective_batch_size: int,
        dp_size: int,
        grad_accum: int,
        shuffle: bool = True,
        seed: int = 42,
        rank: int = 0,
        drop_last: bool = True,
    ) -> None:
        if effective_batch_size < dp_size * grad_accum:
            raise ValueError(
                f"effective_batch_size={effective_batch_size}: an update has {dp_size * grad_accum} micro-batches (dp_size "
                "* grad_accum); give it at least as many samples"
            )
        self.lengths = lengths
        self.effective_batch_size = effective_batch_size
        self.dp_size = dp_size
        self.grad_accum = grad_accum
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next run through the sampler that of ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        updates, rest = divmod(len(self.lengths), self.effective_batch_size)
        return (updates + (rest > 0 and not self.drop_last)) * self.grad_accum

    def __iter__(self) -> Iterator[list[int]]:
        lengths = as_lengths(self.lengths)
        order = np.arange(len(lengths))
        if self.shuffle:
            order = torch.randperm(
                len(lengths), generator=torch.Generator().manual_seed(self.seed + self.epoch)
            ).numpy()
        for update in updates_of(order, self.effective_batch_size, self.drop_last, self.dp_size * self.grad_accum):
            yield from update_batches(update, lengths, self.grad_accum, self.dp_size)[self.rank :: self.dp_size]


def updates_of(
    order: np.ndarray[Any, Any], samples: int, drop_last: bool, at_least: int
) -> Iterator[np.ndarray[Any, Any]]:
    """The samples of each update; a last one of fewer than ``at_least`` is filled up from the start of the order."""
    for start in range(0, len(order), samples):
        update = order[start : start + samples]
        if len(update) < samples and drop_last:
            return
        if len(update) < at_least:
            update = np.concatenate([update, np.resize(order, at_least - len(update))])
        yield update
