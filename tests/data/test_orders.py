"""Orders by length: complete, within their budget, and functions of (seed, epoch, specification)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mainspring.data.epoch_order import EpochOrder
from mainspring.data.lengths import Lengths
from mainspring.data.loaders import LoaderOptions, build_loader
from mainspring.data.orders import BudgetBatches, GroupedOrder, LengthOrder, RebalancedBatches, Specification
from mainspring.errors import CheckpointError, OptionError

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=90)
SIZES = st.integers(1, 6)
WORLDS = st.integers(1, 4)
EPOCHS = st.integers(0, 3)
STRATEGIES = ("group_by_length", "batch_rebalance", "token_budget")
BUDGET = 40


class Texts:
    """Samples of given lengths, which are counted when they are read."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.reads = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        return {"input_ids": [1] * self.lengths[index], "number": index}


class Growing(Texts):
    """Whose samples are longer in every epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": [1] * (self.lengths[index] + 3 * self.epoch), "number": index}


def order_of(strategy: str, dataset: Any, size: int = 3, parts: int = 2, world: int = 1, seed: int = 5) -> LengthOrder:
    kinds = {"group_by_length": GroupedOrder, "batch_rebalance": RebalancedBatches, "token_budget": BudgetBatches}
    budget = strategy == "token_budget"
    known = Specification(strategy, None if budget else size, parts, world, BUDGET if budget else None)
    return kinds[strategy](Lengths(dataset), known, seed)


def loader_of(order: LengthOrder, dataset: Any, rank: int = 0, world: int = 1, size: int = 3) -> Any:
    return build_loader(
        dataset,
        batch_size=size,
        collate_fn=lambda rows: [row["number"] for row in rows],
        sampler=order,
        drop_last=False,
        rank=rank,
        world_size=world,
        options=LoaderOptions(),
    )


def shares(strategy: str, lengths: list[int], size: int, parts: int, world: int, epoch: int) -> list[list[list[int]]]:
    """The batches of each process."""
    data = Texts(lengths)
    found = []
    for rank in range(world):
        loader = loader_of(order_of(strategy, data, size, parts, world), data, rank, world, size)
        loader.batch_sampler.set_epoch(epoch)
        batches = list(loader)
        loader.batch_sampler.set_epoch(epoch)
        assert len(loader) == len(batches)
        found.append(batches)
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(LENGTHS, SIZES, SIZES, WORLDS, EPOCHS)
@settings(deadline=None, max_examples=80)
def test_every_sample_comes_once_but_for_what_fills_the_last_round(
    strategy: str, lengths: list[int], size: int, parts: int, world: int, epoch: int
) -> None:
    dealt = shares(strategy, lengths, size, parts, world, epoch)
    counted = Counter(index for share in dealt for batch in share for index in batch)
    assert set(counted) == set(range(len(lengths)))
    assert len({len(share) for share in dealt}) == 1
    if world == 1:
        assert set(counted.values()) == {1}


@given(LENGTHS, SIZES, WORLDS, EPOCHS)
@settings(deadline=None, max_examples=80)
def test_a_budget_is_kept_to_and_no_sample_comes_twice(lengths: list[int], parts: int, world: int, epoch: int) -> None:
    batches = order_of("token_budget", Texts(lengths), parts=parts, world=world).batches_of(epoch)
    sizes = np.asarray(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * sizes[batch].max() <= BUDGET
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) % world == 0 or len(batches) == len(lengths)


@given(LENGTHS, SIZES, SIZES, WORLDS, EPOCHS)
@settings(deadline=None, max_examples=80)
def test_rebalanced_updates_have_the_same_number_of_samples(
    lengths: list[int], size: int, parts: int, world: int, epoch: int
) -> None:
    batches = order_of("batch_rebalance", Texts(lengths), size, parts, world).batches_of(epoch)
    updates = [batches[start : start + parts * world] for start in range(0, len(batches), parts * world)]
    counts = [sum(map(len, update)) for update in updates]
    assert all(count == size * parts * world for count in counts[:-1])
    assert min(map(len, batches)) >= 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_order_is_that_of_its_seed_and_epoch(strategy: str) -> None:
    lengths = [(7 * number) % 31 + 1 for number in range(60)]

    def orders(seed: int) -> list[list[Any]]:
        order, found = order_of(strategy, Texts(lengths), seed=seed), []
        for epoch in (0, 1, 2):
            order.set_epoch(epoch)
            found.append(list(order))
        return found

    first, other = orders(1), orders(9)
    assert first == orders(1)
    assert first[0] != first[1] != first[2]
    assert first[0] != other[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_whole_run_moves_on_by_one_epoch(strategy: str) -> None:
    order = order_of(strategy, Texts(list(range(1, 40))))
    first, second = list(order), list(order)
    assert first != second
    order.set_epoch(1)
    assert list(order) == second


def test_every_epoch_has_as_many_batches_of_tokens() -> None:
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.lognormal(2, 0.8, 700).astype(int) + 1, BUDGET).tolist()
    order = order_of("token_budget", Texts(lengths), world=2)
    assert len({len(order.batches_of(epoch)) for epoch in range(12)}) == 1


def test_batches_of_tokens_are_nearly_full_and_alike_within_a_round() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 11, 2000)
    order = order_of("token_budget", Texts(lengths.tolist()), world=4)
    tokens = [len(batch) * int(lengths[batch].max()) for batch in order.batches_of(3)]
    rounds = [tokens[start : start + 4] for start in range(0, len(tokens), 4)]
    assert sum(tokens) >= 0.9 * BUDGET * len(tokens)
    assert sum(lengths) >= 0.9 * sum(tokens)
    assert max(max(dealt) - min(dealt) for dealt in rounds[:-1]) <= BUDGET // 4
    assert max(tokens) == tokens[0]


def test_drop_last_leaves_out_batches_that_some_process_would_not_have() -> None:
    lengths = Lengths(Texts([10] * 26))  # four rows a batch: seven batches
    known = Specification("token_budget", world_size=4, max_tokens=BUDGET)
    whole = BudgetBatches(lengths, known, 0).batches_of(0)
    dropped = BudgetBatches(lengths, replace(known, drop_last=True), 0).batches_of(0)
    assert (len(whole), sum(map(len, whole))) == (8, 26)
    assert [len(batch) for batch in dropped] == [4, 4, 4, 4]


def test_a_sample_beyond_the_budget_is_told_and_stays_alone(caplog: pytest.LogCaptureFixture) -> None:
    batches = order_of("token_budget", Texts([5, 97, 5, 5, 98])).batches_of(0)
    assert [1] in [batch.tolist() for batch in batches]
    assert "2 of 5 samples are longer, up to 98 tokens" in caplog.text


def test_lengths_that_vary_are_planned_for_each_epoch() -> None:
    data = Growing([1, 2, 3, 4, 5, 6, 7, 8] * 4)
    order = order_of("token_budget", data)
    for epoch in (0, 1, 5):
        sizes = np.asarray(data.lengths) + 3 * epoch
        assert all(len(batch) * sizes[batch].max() <= BUDGET for batch in order.batches_of(epoch))
    assert len(order.batches_of(0)) < len(order.batches_of(5))


class TestGoingOn:
    """What was done of an epoch is left out, and nothing else, whatever the options are now."""

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @given(LENGTHS, SIZES, SIZES, WORLDS, SIZES, SIZES, WORLDS, st.integers(1, 5))
    @settings(deadline=None, max_examples=60)
    def test_with_other_sizes(
        self,
        strategy: str,
        lengths: list[int],
        size: int,
        parts: int,
        world: int,
        new_size: int,
        new_parts: int,
        new_world: int,
        done: int,
    ) -> None:
        data, epoch = Texts(lengths), 2
        former = [
            loader_of(order_of(strategy, data, size, parts, world), data, rank, world, size) for rank in range(world)
        ]
        batches = []
        for loader in former:
            loader.batch_sampler.set_epoch(epoch)
            batches.append(list(loader))
        done = min(done, len(batches[0]))
        place = EpochOrder.of(former[0]).place(epoch)
        seen = Counter(index for share in batches for batch in share[:done] for index in batch)
        assert EpochOrder.of(former[0]).samples_before(epoch, done) >= len(seen)

        rest: Counter[int] = Counter()
        lengths_now = set()
        for rank in range(new_world):
            order = order_of(strategy, data, new_size, new_parts, new_world)
            loader = loader_of(order, data, rank, new_world, new_size)
            now = EpochOrder.of(loader)
            skip = now.go_on(epoch, done, place)
            loader.batch_sampler.skip(skip)
            share = list(loader)
            loader.batch_sampler.set_epoch(epoch)
            lengths_now.add(now.length(epoch))
            assert len(share) == max(0, now.length(epoch) - skip)
            rest.update(index for batch in share for index in batch)
        assert len(lengths_now) == 1
        assert set(seen) | set(rest) == set(range(len(lengths)))
        if world == new_world == 1:
            assert not set(seen) & set(rest)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_the_next_epoch_is_that_of_the_options(self, strategy: str) -> None:
        data = Texts([(5 * number) % 17 + 1 for number in range(50)])
        former = EpochOrder.of(loader_of(order_of(strategy, data, 2, 1), data, size=2))
        order = order_of(strategy, data, 4, 3)
        fresh = order_of(strategy, data, 4, 3)
        now = EpochOrder.of(loader_of(order, data, size=4))
        now.go_on(1, 2, former.place(1))
        for one in (order, fresh):
            one.set_epoch(2)
        assert list(order) == list(fresh)
        assert now.place(2) == EpochOrder.of(loader_of(fresh, data, size=4)).place(2)

    def test_an_order_of_other_lengths_cannot_be_made_again(self) -> None:
        place = EpochOrder.of(loader_of(order_of("token_budget", Texts([1, 2, 3])), Texts([1, 2, 3]))).place(0)
        other = Texts([1, 2, 4])
        with pytest.raises(OptionError, match="other lengths when the checkpoint was written"):
            EpochOrder.of(loader_of(order_of("token_budget", other), other)).go_on(0, 1, place)

    def test_nor_one_of_another_strategy(self) -> None:
        data = Texts([1, 2, 3])
        place = EpochOrder.of(loader_of(order_of("token_budget", data), data)).place(0)
        with pytest.raises(OptionError, match="train_sampling_strategy='group_by_length': it is 'token_budget'"):
            EpochOrder.of(loader_of(order_of("group_by_length", data), data)).go_on(0, 1, place)

    @pytest.mark.parametrize(
        "change",
        [
            {"round": 0},
            {"round": "3"},
            {"left_out": -1},
            {"specification": None},
            {"specification": {"strategy": "token_budget"}},
        ],
    )
    def test_a_place_that_is_none_is_refused(self, change: dict[str, Any]) -> None:
        data = Texts([1, 2, 3])
        order = EpochOrder.of(loader_of(order_of("token_budget", data), data))
        with pytest.raises(CheckpointError, match="in the checkpoint, .* is none"):
            order.go_on(0, 1, {**order.place(0), **change})

    @pytest.mark.parametrize(
        ("strategy", "change"),
        [
            ("token_budget", {"max_tokens": None}),
            ("token_budget", {"max_tokens": 0}),
            ("token_budget", {"batch_size": 3}),
            ("group_by_length", {"batch_size": None}),
            ("group_by_length", {"pack_length": 9}),
            ("batch_rebalance", {"accumulation": True}),
            ("batch_rebalance", {"world_size": 0}),
            ("batch_rebalance", {"drop_last": None}),
        ],
    )
    def test_so_is_a_specification_that_is_none(self, strategy: str, change: dict[str, Any]) -> None:
        """Nothing stands for a size but a number, and there is the one that the strategy goes by, and no other."""
        data = Texts([1, 2, 3])
        order = EpochOrder.of(loader_of(order_of(strategy, data), data))
        place = order.place(0)
        order.go_on(0, 1, place)
        with pytest.raises(CheckpointError, match="the order of the samples in the checkpoint, .* is none"):
            order.go_on(0, 1, {**place, "specification": {**place["specification"], **change}})
