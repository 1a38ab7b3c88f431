"""Orders by length: equal to the reference's, and complete."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import trainer_pt_utils as reference

from mainspring.data.grouping import (
    DistributedLengthGroupedSampler,
    LengthGroupedSampler,
    get_length_grouped_indices,
)


class TestLengthGrouping:
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=120), st.integers(1, 6), st.sampled_from([None, 1, 3]))
    @settings(deadline=None)
    def test_order_equals_the_reference(self, lengths: list[int], batch_size: int, mult: int | None) -> None:
        ours = get_length_grouped_indices(lengths, batch_size, mult, torch.Generator().manual_seed(1))
        theirs = reference.get_length_grouped_indices(lengths, batch_size, mult, torch.Generator().manual_seed(1))
        assert ours == theirs

    def test_global_generator_is_used_as_the_reference_does(self) -> None:
        lengths = [(7 * number) % 23 for number in range(100)]
        torch.manual_seed(0)
        theirs = list(reference.LengthGroupedSampler(4, lengths=lengths))
        torch.manual_seed(0)
        assert list(LengthGroupedSampler(4, lengths=lengths)) == theirs

    def test_lengths_are_measured(self) -> None:
        data = [{"text": "a" * length} for length in (3, 1, 2)]
        sampler = LengthGroupedSampler(2, data, model_input_name="text")
        assert (sampler.lengths, len(sampler)) == ([3, 1, 2], 3)
        assert LengthGroupedSampler(2, lengths=torch.tensor([3, 1, 2])).lengths == [3, 1, 2]

    def test_no_samples(self) -> None:
        assert get_length_grouped_indices([], 2) == []

    def test_what_cannot_be_measured_is_refused(self) -> None:
        with pytest.raises(ValueError, match="lengths=None"):
            LengthGroupedSampler(2)
        with pytest.raises(ValueError, match="'input_ids'"):
            LengthGroupedSampler(2, [{"x": [1]}])


class TestDistributedLengthGrouping:
    @given(st.lists(st.integers(1, 30), min_size=4, max_size=80), st.integers(1, 5), st.integers(1, 4), st.booleans())
    @settings(deadline=None)
    def test_shares_equal_the_references(self, lengths: list[int], size: int, world: int, drop_last: bool) -> None:
        for rank in range(world):
            shares = []
            for kind in (reference.DistributedLengthGroupedSampler, DistributedLengthGroupedSampler):
                given = {"num_replicas": world, "rank": rank, "seed": 3, "drop_last": drop_last, "lengths": lengths}
                sampler = kind(size, **given)
                sampler.set_epoch(2)
                shares.append((list(sampler), len(sampler)))
            assert shares[0] == shares[1]

    def test_lengths_are_measured(self) -> None:
        data = [{"input_ids": [0] * length} for length in (3, 1, 2)]
        assert DistributedLengthGroupedSampler(2, data, num_replicas=1, rank=0).lengths == [3, 1, 2]

    def test_more_processes_than_samples(self) -> None:
        shares = [list(DistributedLengthGroupedSampler(1, lengths=[4], num_replicas=3, rank=rank)) for rank in range(3)]
        assert shares == [[0], [0], [0]]
