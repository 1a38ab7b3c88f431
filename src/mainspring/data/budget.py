"""Batches of a number of tokens rather than of samples.

A batch's tokens are its rows times the longest of them, which is what it takes once padded. Long samples come few to a
batch, short ones many, so that every batch costs about the same and little of it is padding.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from mainspring.data.grouping import sorted_in_mega_batches

Indices = np.ndarray[Any, np.dtype[np.int64]]

_LEAST_SORTED, _MOST_SORTED = 4, 50
"""How many batches' samples are sorted together. More of them leave less padding, and less to chance."""


@dataclass(frozen=True)
class Budget:
    """Shares out samples among batches of at most ``max_tokens`` padded tokens.

    Attributes:
        max_tokens: Rows times the longest row, at most. A sample that is longer gets a batch of its own.
        world_size: Number of processes. Every round has a batch for each, as far as there are samples: batches are split
            until it has.
        drop_last: Leave out the smallest batches instead of splitting others.
    """

    max_tokens: int
    world_size: int = 1
    drop_last: bool = False

    def batches(self, lengths: Indices, generator: torch.Generator, count: int | None = None) -> list[Indices]:
        """The samples of each batch from long to short, round by round.

        A random permutation is cut into stretches, which are sorted by length and cut into batches. Batches of similar
        size are dealt to the processes of one round; the rounds come at random, but for the one with the largest batch,
        which is first, so that a lack of memory shows at the first step.

        Args:
            lengths: Of every sample.
            generator: Source of the permutation, and of the order of the rounds.
            count: How many batches there are to be, as :meth:`number_of_batches` says; by default as few as the
                permutation gives.
        """
        permutation = torch.randperm(len(lengths), generator=generator).numpy()
        spare = self.world_size - 1 if self.drop_last else 0  # what is left out of the last round
        batches = _cut(lengths, permutation, self.max_tokens, None if count is None else count + spare)
        batches = _resized(batches, lengths, self._whole_rounds(len(batches)) if count is None else count)
        return _in_rounds(batches, lengths, self.world_size, generator)

    def number_of_batches(self, lengths: Indices, generator: torch.Generator) -> int:
        """How many batches the permutation that ``generator`` draws gives: enough for every other one, too."""
        permutation = torch.randperm(len(lengths), generator=generator).numpy()
        return min(self._whole_rounds(len(_cut(lengths, permutation, self.max_tokens, None))), len(lengths))

    def _whole_rounds(self, batches: int) -> int:
        rounds = batches // self.world_size if self.drop_last else -(-batches // self.world_size)
        return rounds * self.world_size


def padded_tokens(batch: Indices, lengths: Indices) -> int:
    """Tokens of a batch once its samples are padded to the longest, which comes first."""
    return len(batch) * int(lengths[batch[0]])


def _cut(lengths: Indices, permutation: Indices, max_tokens: int, count: int | None) -> list[Indices]:
    """As many batches as ``count`` at most: fewer where the stretches that are sorted are longer."""
    samples = len(permutation)
    rows = max(1, int(max_tokens // max(1.0, float(lengths.mean())))) if samples else 1
    size = rows * max(_LEAST_SORTED, min(samples // (4 * rows), _MOST_SORTED))
    while True:
        order, starts = sorted_in_mega_batches(lengths, permutation, size)
        bounds = _bounds(lengths[order], [*starts.tolist(), samples], max_tokens)
        if count is None or len(bounds) <= count or size >= samples:
            return [order[start:stop] for start, stop in bounds]
        size *= 2


def _bounds(sorted_lengths: Indices, stretches: list[int], max_tokens: int) -> list[tuple[int, int]]:
    """From the longest sample of a stretch on, as many as fit beside it, and again from the next one."""
    bounds = []
    for start, end in pairwise(stretches):
        while start < end:
            rows = max(1, max_tokens // max(1, int(sorted_lengths[start])))
            stop = min(start + rows, end)
            bounds.append((start, stop))
            start = stop
    return bounds


def _resized(batches: list[Indices], lengths: Indices, wanted: int) -> list[Indices]:
    """``wanted`` batches: the largest ones split in half, or the smallest ones left out."""
    if len(batches) > wanted:
        return sorted(batches, key=lambda batch: -padded_tokens(batch, lengths))[:wanted]
    whole = [batch for batch in batches if len(batch) == 1]
    heap = [(-padded_tokens(batch, lengths), number, batch) for number, batch in enumerate(batches) if len(batch) > 1]
    heapq.heapify(heap)
    number = len(batches)
    while heap and len(heap) + len(whole) < wanted:
        _, _, batch = heapq.heappop(heap)
        half = (len(batch) + 1) // 2
        for part in (batch[:half], batch[half:]):
            number += 1
            if len(part) == 1:
                whole.append(part)
            else:
                heapq.heappush(heap, (-padded_tokens(part, lengths), number, part))
    return whole + [batch for _, _, batch in sorted(heap, key=lambda entry: entry[1])]


def _in_rounds(batches: list[Indices], lengths: Indices, world_size: int, generator: torch.Generator) -> list[Indices]:
    ranked = sorted(batches, key=lambda batch: -padded_tokens(batch, lengths))
    full = len(ranked) // world_size
    order = torch.randperm(full, generator=generator).tolist()
    if full:
        first = order.index(0)
        order[0], order[first] = order[first], order[0]
    rounds = [ranked[number * world_size : (number + 1) * world_size] for number in order]
    return [batch for dealt in rounds for batch in dealt] + ranked[full * world_size :]
