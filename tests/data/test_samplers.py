"""Orders and how they are dealt: equal to what the reference's stack trains on, and complete."""

from __future__ import annotations

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, IterableDatasetShard, SeedableRandomSampler
from hypothesis import given, settings, strategies as st
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, SequentialSampler

from mainspring.data.grouping import LengthGroupedSampler
from mainspring.data.samplers import (
    DealtBatches,
    EpochRandomSampler,
    IterableShard,
    seeded,
)

SIZES = st.integers(1, 60)
BATCHES = st.integers(1, 9)
WORLDS = st.integers(1, 5)


def dealt(
    count: int, batch_size: int, world_size: int, drop_last: bool = False, even: bool = True
) -> list[DealtBatches]:
    return [DealtBatches(range(count), batch_size, drop_last, rank, world_size, even) for rank in range(world_size)]


class TestEpochRandomSampler:
    @pytest.mark.parametrize("epoch", [0, 1, 7])
    @pytest.mark.parametrize("options", [{}, {"num_samples": 250}, {"num_samples": 70, "replacement": True}])
    def test_order_is_that_of_the_seedable_sampler(self, epoch: int, options: dict) -> None:
        data = range(100)
        theirs = SeedableRandomSampler(data, data_seed=42, **options)
        theirs.set_epoch(epoch)
        ours = EpochRandomSampler(data, seed=42, **options)
        ours.set_epoch(epoch)
        assert list(ours) == list(theirs)
        assert len(ours) == len(theirs)

    def test_order_is_a_seeded_permutation(self) -> None:
        sampler = EpochRandomSampler(1000, seed=5)
        sampler.set_epoch(3)
        generator = torch.Generator().manual_seed(8)
        assert list(sampler) == torch.randperm(1000, generator=generator).tolist()

    def test_a_whole_run_moves_on_by_one_epoch_and_a_part_does_not(self) -> None:
        sampler = EpochRandomSampler(20, seed=0)
        first = list(sampler)
        part = iter(sampler)
        next(part)
        second = list(sampler)
        assert first != second
        sampler.set_epoch(1)
        assert list(sampler) == second

    def test_global_generator_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        list(EpochRandomSampler(20, seed=0))
        assert torch.equal(before, torch.get_rng_state())

    def test_long_orders_come_in_pieces_without_a_seam(self) -> None:
        count = (1 << 16) + 10
        assert sorted(EpochRandomSampler(count, seed=0)) == list(range(count))

    def test_empty_data_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no samples"):
            EpochRandomSampler([], seed=0)


class TestSeeded:
    def test_plain_random_sampler_becomes_a_function_of_seed_and_epoch(self) -> None:
        assert list(seeded(RandomSampler(range(30)), 3)) == list(EpochRandomSampler(30, 3))

    def test_random_sampler_inside_a_batch_sampler_too(self) -> None:
        batches = seeded(BatchSampler(RandomSampler(range(30)), 4, True), 3)
        assert list(batches) == list(BatchSampler(EpochRandomSampler(30, 3), 4, True))

    def test_other_samplers_stay(self) -> None:
        class Own(RandomSampler):
            pass

        for sampler in (Own(range(3)), SequentialSampler(range(3)), EpochRandomSampler(3, 0)):
            assert seeded(sampler, 0) is sampler


class TestDealtBatches:
    @pytest.mark.parametrize("even", [True, False])
    @pytest.mark.parametrize("drop_last", [True, False])
    @pytest.mark.parametrize("world_size", [2, 3, 4])
    @pytest.mark.parametrize("batch_size", [1, 3, 4])
    def test_equals_the_shards_of_accelerate(
        self, batch_size: int, world_size: int, drop_last: bool, even: bool
    ) -> None:
        for count in range(1, 40):
            for rank, ours in enumerate(dealt(count, batch_size, world_size, drop_last, even)):
                global_batches = BatchSampler(range(count), batch_size, drop_last)
                theirs = BatchSamplerShard(global_batches, world_size, rank, even_batches=even)
                assert list(ours) == list(theirs), (count, rank)
                assert len(ours) == len(theirs), (count, rank)

    @given(SIZES, BATCHES, st.booleans())
    @settings(deadline=None)
    def test_one_process_gets_the_plain_batches(self, count: int, batch_size: int, drop_last: bool) -> None:
        (ours,) = dealt(count, batch_size, 1, drop_last)
        assert list(ours) == list(BatchSampler(range(count), batch_size, drop_last))
        assert len(ours) == len(list(ours))

    @given(SIZES, BATCHES, st.integers(0, 3), st.integers(0, 100))
    @settings(deadline=None)
    def test_every_sample_once_per_epoch_on_one_process(
        self, count: int, batch_size: int, epoch: int, seed: int
    ) -> None:
        batches = DealtBatches(EpochRandomSampler(count, seed), batch_size)
        batches.set_epoch(epoch)
        assert sorted(index for batch in batches for index in batch) == list(range(count))

    @given(SIZES, BATCHES, WORLDS)
    @settings(deadline=None)
    def test_ranks_together_cover_everything_in_equal_numbers(
        self, count: int, batch_size: int, world_size: int
    ) -> None:
        shares = [list(share) for share in dealt(count, batch_size, world_size)]
        assert {index for share in shares for batch in share for index in batch} == set(range(count))
        assert len({tuple(map(len, share)) for share in shares}) == 1

    @given(SIZES, BATCHES, WORLDS)
    @settings(deadline=None)
    def test_uneven_dealing_repeats_nothing(self, count: int, batch_size: int, world_size: int) -> None:
        shares = dealt(count, batch_size, world_size, even=False)
        assert sorted(index for share in shares for batch in share for index in batch) == list(range(count))
        assert [len(share) for share in shares] == [len(list(share)) for share in shares]

    @given(SIZES, BATCHES, WORLDS, st.booleans(), st.booleans(), st.integers(0, 12))
    @settings(deadline=None)
    def test_skipping_equals_dropping_batches(
        self, count: int, batch_size: int, world_size: int, drop_last: bool, even: bool, skip: int
    ) -> None:
        for share in dealt(count, batch_size, world_size, drop_last, even):
            whole = list(share)
            share.skip(skip)
            assert list(share) == whole[skip:]
            assert list(share) == whole  # only one iteration starts late

    def test_a_skip_belongs_to_the_iterator_that_starts_next(self) -> None:
        batches = DealtBatches(range(6), 2)
        batches.skip(2)
        forgotten, late, early = iter(batches), iter(batches), iter(batches)  # torch's loader makes two, and uses one
        assert next(late) == [4, 5]
        assert next(early) == [0, 1]
        assert next(forgotten) == [0, 1]

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_batches_of_varying_size_are_dealt_whole(self, world_size: int) -> None:
        class Varying(BatchSampler):
            batch_size = None
            drop_last = False

            def __init__(self) -> None:
                pass

            def __len__(self) -> int:
                return 4

            def __iter__(self):
                return iter([[0], [1, 2], [3, 4, 5], [6]])

        for rank in range(world_size):
            ours = DealtBatches(Varying(), rank=rank, world_size=world_size)
            theirs = BatchSamplerShard(Varying(), world_size, rank)
            assert list(ours) == list(theirs)
            assert len(ours) == len(theirs)

    def test_a_batch_sampler_keeps_its_own_size(self) -> None:
        batches = DealtBatches(BatchSampler(range(10), 3, True), batch_size=99)
        assert list(batches) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        assert (batches.batch_size, batches.drop_last, len(batches)) == (3, True, 3)

    def test_a_sampler_of_indices_may_have_a_batch_size(self) -> None:
        batches = DealtBatches(LengthGroupedSampler(2, lengths=[1, 2, 3]), 2)
        assert [len(batch) for batch in batches] == [2, 1]

    def test_epoch_reaches_the_innermost_sampler(self) -> None:
        inner = EpochRandomSampler(9, 0)
        DealtBatches(BatchSampler(inner, 3, False)).set_epoch(4)
        assert inner.epoch == 4

    def test_lists_from_an_unmarked_sampler_are_refused(self) -> None:
        with pytest.raises(TypeError, match="BatchSampler"):
            list(DealtBatches([[0, 1], [2]], 2))

    @pytest.mark.parametrize("batch_size", [0, -1, None, 2.5])
    def test_bad_batch_size(self, batch_size: object) -> None:
        with pytest.raises(ValueError, match="batch_size"):
            DealtBatches(range(3), batch_size)

    def test_bad_rank(self) -> None:
        with pytest.raises(ValueError, match="world_size=2"):
            DealtBatches(range(3), 1, rank=2, world_size=2)


class Stream(IterableDataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        return iter(range(self.count))

    def __len__(self) -> int:
        return self.count


class TestIterableShard:
    @pytest.mark.parametrize("drop_last", [True, False])
    @pytest.mark.parametrize("world_size", [1, 2, 3])
    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_equals_the_shards_of_accelerate(self, batch_size: int, world_size: int, drop_last: bool) -> None:
        for count in range(30):
            for rank in range(world_size):
                ours = IterableShard(Stream(count), batch_size, drop_last, rank, world_size)
                theirs = IterableDatasetShard(Stream(count), batch_size, drop_last, world_size, rank)
                assert list(ours) == list(theirs)
                assert len(ours) == len(theirs) == len(list(ours))

    def test_generator_is_seeded_by_epoch(self) -> None:
        class Noise(IterableDataset):
            generator = torch.Generator()

            def __iter__(self):
                return iter(torch.rand(4, generator=self.generator).tolist())

        shard = IterableShard(Noise(), 1, seed=3)
        shard.set_epoch(2)
        expected = torch.rand(4, generator=torch.Generator().manual_seed(5)).tolist()
        assert list(shard) == expected == list(shard)

    def test_epoch_is_forwarded_and_then_the_generator_is_the_streams_own_business(self) -> None:
        class Own(Stream):
            generator = torch.Generator().manual_seed(1)
            epoch = None

            def set_epoch(self, epoch: int) -> None:
                self.epoch = epoch

        stream = Own(3)
        before = stream.generator.get_state()
        shard = IterableShard(stream, 1)
        shard.set_epoch(6)
        list(shard)
        assert stream.epoch == 6
        assert torch.equal(before, stream.generator.get_state())

    def test_stream_without_length_has_none(self) -> None:
        with pytest.raises(TypeError):
            len(IterableShard((number for number in range(3)), 1))
