"""Micro-batches of nearly equal cost: the reference's, group by group."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings, strategies as st
from transformers import trainer_pt_utils as reference

from mainspring.data.rebalance import QUADRATIC_COST_COEF, BatchRebalanceSampler, balanced_groups, cost_of

LENGTH = st.one_of(st.integers(1, 20), st.integers(1, 2000))


@given(
    st.lists(LENGTH, min_size=1, max_size=120),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.integers(0, 4),
)
@settings(deadline=None, max_examples=400)
def test_batches_equal_the_references(
    lengths: list[int], world: int, parts: int, size: int, shuffle: bool, drop_last: bool, epoch: int, rank: int
) -> None:
    rank %= world
    found = []
    for kind in (reference.BatchRebalanceSampler, BatchRebalanceSampler):
        sampler = kind(
            lengths, size * parts * world, world, parts, shuffle=shuffle, seed=7, rank=rank, drop_last=drop_last
        )
        sampler.set_epoch(epoch)
        found.append((list(sampler), len(sampler)))
    assert found[0] == found[1]


@pytest.mark.parametrize(("world", "parts"), [(8, 4), (16, 3), (4, 12)])
def test_large_updates_too(world: int, parts: int) -> None:
    """Where more groups are trained on at once than fit into a small set, whose order has a say."""
    drawn = random.Random(world)
    lengths = [int(drawn.lognormvariate(4, 1.2)) + 1 for _ in range(5 * world * parts)]
    theirs = list(reference.BatchRebalanceSampler(lengths, len(lengths), world, parts))
    assert list(BatchRebalanceSampler(lengths, len(lengths), world, parts)) == theirs


def test_its_constant_is_the_references() -> None:
    assert reference.BatchRebalanceSampler.QUADRATIC_COST_COEF == QUADRATIC_COST_COEF


def test_groups_cost_less_apart_than_groups_of_one_size() -> None:
    drawn = random.Random(3)
    lengths = sorted((int(drawn.lognormvariate(4, 1)) + 1 for _ in range(64)), reverse=True)

    def spread(groups: list[slice]) -> float:
        costs = [cost_of(group.stop - group.start, lengths[group.start]) for group in groups]
        return max(costs) / min(costs)

    even = [slice(start, start + 8) for start in range(0, 64, 8)]
    assert spread(balanced_groups(lengths, 8, 2)) < 0.25 * spread(even)


def test_an_update_needs_a_sample_for_each_micro_batch() -> None:
    with pytest.raises(ValueError, match="effective_batch_size=3.*4 micro-batches"):
        BatchRebalanceSampler([1, 2, 3], 3, 2, 2)
