"""Data of any kind and size, drawn at random: no process waits for another, no sample is lost or comes twice."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise, zip_longest
from typing import Any

import pytest

from tests.distributed.worker_worlds import APART, RAGGED, SHARED, Drawn, drawn, texts
from tests.distributed.worlds import SEVERAL, found
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own loaders"),
]

CASES = [
    pytest.param(world, number, id=f"{world}-{number}-{one.kind.replace(' ', '_')}")
    for world in SEVERAL
    for number, one in enumerate(drawn(world))
]
of_each = pytest.mark.parametrize(("world", "number"), CASES)


def case(world: int, number: int) -> tuple[Drawn, list[dict[str, Any]]]:
    """A configuration, and what each process made of it."""
    return drawn(world)[number], [rank["drawn"][number] for rank in found(world)]


def samples_of(update: Any) -> list[int]:
    """The samples of an update over all processes."""
    return [sample for parts in update for part in parts or () for sample in part]


def updates(runs: list[dict[str, Any]]) -> list[list[int]]:
    return [samples_of(update) for update in zip_longest(*(run["updates"] for run in runs))]


def left_out(one: Drawn, world: int) -> int:
    """How many samples an epoch does without, where a last round or batch that is not full is dropped."""
    if not one.drop_last:
        return 0
    if one.kind in SHARED:
        return sum(one.sizes) % (one.batch * world)
    return sum(size % one.batch for size in own_sizes(one, world))


def own_sizes(one: Drawn, world: int) -> list[int]:
    """Samples of each process's own; `datasets` gives the first ones a shard more."""
    if one.kind != "shards":
        return list(one.sizes)
    each, more = divmod(len(one.sizes), world)
    bounds = [rank * each + min(rank, more) for rank in range(world + 1)]
    return [sum(one.sizes[start:end]) for start, end in pairwise(bounds)]


def is_filled_up(one: Drawn) -> bool:
    return one.kind in SHARED and one.even and not one.drop_last


@of_each
def test_an_epoch_has_every_sample_once(world: int, number: int) -> None:
    one, runs = case(world, number)
    taken = updates(runs)
    assert len(taken) % 2 == 0
    assert {len(run["updates"]) for run in runs} == {len(taken)}
    total = sum(one.sizes)
    for epoch in (taken[: len(taken) // 2], taken[len(taken) // 2 :]):
        counts = Counter(sample for update in epoch for sample in update)
        if is_filled_up(one):
            assert set(counts) == set(range(total))
            assert counts.total() == math.ceil(total / (one.batch * world)) * one.batch * world
        else:
            assert set(counts.values()) == {1}
            assert counts.total() == total - left_out(one, world)


@of_each
def test_an_epoch_has_as_many_updates_as_whoever_has_most(world: int, number: int) -> None:
    one, runs = case(world, number)
    size = one.batch * (world if one.kind in SHARED else 1)
    sizes = [sum(one.sizes)] if one.kind in SHARED else own_sizes(one, world)
    batches = max(size_ // size if one.drop_last else math.ceil(size_ / size) for size_ in sizes)
    assert len(updates(runs)) == 2 * math.ceil(batches / one.accumulation)


@of_each
def test_losses_and_weights_are_those_of_the_samples(world: int, number: int) -> None:
    """Each update moves the level to the mean of its samples, whoever had them: nothing else has any weight."""
    _, runs = case(world, number)
    level, losses = 0.0, []
    for taken in updates(runs):
        losses.append(sum((level - sample) ** 2 for sample in taken) / len(taken) / 2)
        level += 0.3 * (sum(taken) / len(taken) - level)
    for run in runs:
        assert run["world"] == world
        assert run["losses"] == pytest.approx(losses, rel=1e-5, abs=1e-6)
        assert run["weights"] == pytest.approx([level], rel=1e-6)


@of_each
def test_a_prediction_has_every_sample_once(world: int, number: int) -> None:
    """On every process, as one list; what divides its data itself may give it in another order."""
    one = drawn(world)[number]
    lists = [rank["predicted"][number] for rank in found(world)]
    assert all(one_list == lists[0] for one_list in lists)
    total, kept = sum(one.sizes), lists[0]
    if one.drop_last:
        assert len(kept) == len(set(kept)) == total - left_out(one, world)
    else:
        assert sorted(kept) == list(range(total))
    if one.kind in SHARED:
        assert kept == sorted(kept)


def test_every_kind_is_there() -> None:
    """In each world: with some process that has nothing, one that ends early, and one that drops its rest."""
    for world in SEVERAL:
        cases = drawn(world)
        assert {one.kind for one in cases} == {*SHARED, *APART}
        assert any(one.kind in APART and 0 in own_sizes(one, world) for one in cases)
        assert any(one.drop_last for one in cases)
        assert any(one.kind in SHARED and not one.even for one in cases)
        assert any(one.accumulation > 1 and one.kind in APART for one in cases)
    assert any(one.workers for world in SEVERAL for one in drawn(world))


@pytest.mark.parametrize("compat", ["ragged", "ragged, as the reference"])
@pytest.mark.parametrize("world", SEVERAL)
def test_ragged_outputs_are_gathered_whole(world: int, compat: str) -> None:
    """Processes with other numbers of texts, of other widths, and one with none."""
    rows = texts(sum(RAGGED[world]))
    for rank in found(world):
        metrics = rank[compat]["metrics"]
        assert metrics["eval_count"] == len(rows)
        assert metrics["eval_sums"] == [(row["index"], float(sum(row["tokens"]))) for row in rows]
        assert metrics["eval_labels"] == sum(label != -100 for row in rows for label in row["labels"])


@pytest.mark.parametrize("world", SEVERAL)
def test_a_metric_is_computed_once(world: int) -> None:
    assert [rank["ragged"]["calls"] for rank in found(world)] == [1, *[0] * (world - 1)]
    assert [rank["ragged, as the reference"]["calls"] for rank in found(world)] == [1] * world


@pytest.mark.parametrize("world", SEVERAL)
def test_all_hear_of_a_metric_that_fails(world: int) -> None:
    assert [rank["failing"] for rank in found(world)] == ["no such metric"] * world
