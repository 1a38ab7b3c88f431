"""Two processes with loaders of every kind: who gets what, who reads, and resuming."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest

from tests.distributed.launch import PROCESSES, forked
from tests.distributed.worker_loaders import CASES, EVALUATED, FAILING, STOPS
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own loaders"),
]

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each process saw in each case."""
    out = tmp_path_factory.mktemp("loaders")
    forked("tests.distributed.worker_loaders", str(out))
    return [json.loads((out / f"loaders-rank{rank}.json").read_text()) for rank in range(PROCESSES)]


def seen(found: Found, name: str) -> list[list[list[int]]]:
    """The batches of each process."""
    return [rank[name]["seen"] for rank in found]


def flat(batches: Any) -> list[int]:
    return list(chain.from_iterable(batches))


def test_processes_stay_together(found: Found) -> None:
    for name in CASES:
        first, second = (rank[name] for rank in found)
        assert first["weight"] == second["weight"], name
        assert (first["steps"], len(first["reduced"])) == (second["steps"], len(second["reduced"])), name


def test_a_split_batch_is_divided(found: Found) -> None:
    """As the reference does; but an update has 4 samples, where it counts 8."""
    assert seen(found, "split") == [
        [[0, 1], [4, 5], [8, 9], [12, 13], [16, 17], [20, 0]],
        [[2, 3], [6, 7], [10, 11], [14, 15], [18, 19], [1, 2]],
    ]
    assert found[0]["split"]["total"] == 4


@pytest.mark.parametrize("name", ["dispatched", "dispatched by workers", "workers", "prepared"])
def test_who_reads_changes_nothing(name: str, found: Found) -> None:
    """Samples, the random numbers of their collator, and the weights."""
    for rank in found:
        for what in ("seen", "noise", "weight", "steps"):
            assert rank[name][what] == rank["plain"][what]


def test_who_reads_changes_nothing_where_each_epoch_has_more_batches(found: Found) -> None:
    """Two in the first one, five in the second."""
    for rank in found:
        for what in ("seen", "noise", "weight", "steps"):
            assert rank["growing and dispatched"][what] == rank["growing"][what]
    second = [rank[2:7] for rank in seen(found, "growing and dispatched")]
    assert sorted(flat(flat(second))) == list(range(20))


def test_only_the_first_process_reads_what_is_dispatched(found: Found) -> None:
    assert [rank["plain"]["reads"] for rank in found] == [24, 24]
    assert [rank["dispatched"]["reads"] for rank in found] == [48, 0]
    assert found[1]["dispatched stream"]["reads"] == 0


def test_a_dispatched_stream_is_dealt_as_one_that_all_read(found: Found) -> None:
    assert seen(found, "dispatched stream") == seen(found, "stream")


def test_a_stream_is_in_another_order_in_each_epoch(found: Found) -> None:
    """Its generator is seeded alike on every process."""
    first, second = (
        [batch for ranks in zip(*seen(found, "stream"), strict=True) for batch in ranks][n] for n in (0, 6)
    )
    assert first != second
    assert set(flat(flat([rank[:3] for rank in seen(found, "stream")]))) == set(range(21))


def test_processes_with_shards_of_their_own_end_together(found: Found) -> None:
    """Shards of 4 and 12 samples, for seven updates: the first process rests until the second is through."""
    first, second = seen(found, "shards")
    assert first == [[0, 1, 2, 3]] * 3
    assert second == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]] * 2 + [[4, 5, 6, 7]]


def test_with_drop_last_each_leaves_its_own_rest_out(found: Found) -> None:
    """Shards of 6 and 13."""
    first, second = seen(found, "shards with drop_last")
    assert first == [[0, 1, 2, 3]] * 3
    assert second == [[6, 7, 8, 9], [10, 11, 12, 13], [14, 15, 16, 17]] * 2 + [[6, 7, 8, 9]]


def test_a_process_without_a_shard_takes_part(found: Found) -> None:
    first, second = seen(found, "empty shard")
    assert first == []
    assert second == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3 + [[0, 1, 2, 3]]


@pytest.mark.parametrize("name", ["more for one", "stream with more for one"])
def test_a_batch_that_only_one_process_has(name: str, found: Found) -> None:
    """17 samples are five batches of up to four."""
    first, second = seen(found, name)
    epoch = flat([*first[:3], *second[:2]])
    assert sorted(epoch) == list(range(17))
    assert [len(batch) for batch in first[:3]] == [4, 4, 1]


def test_a_last_round_that_is_not_filled_up(found: Found) -> None:
    assert sorted(flat(chain(*seen(found, "uneven")))) == list(range(21))
    assert seen(found, "uneven")[1][-1] == [20]
    assert seen(found, "in a row")[1][-1] == [20, 0, 1, 2]


def test_gradients_are_reduced_with_each_micro_batch_or_with_the_last(found: Found) -> None:
    assert found[0]["synchronised"]["reduced"] == [True] * 4
    assert found[0]["not synchronised"]["reduced"] == [False, True] * 2
    assert found[0]["synchronised"]["weight"] == pytest.approx(found[0]["not synchronised"]["weight"], rel=1e-6)


@pytest.mark.parametrize("name", ["drawn", "drawn and dispatched"])
def test_an_order_that_is_drawn_is_one_order(name: str, found: Found) -> None:
    """Though the generators of the processes, from which dropout draws too, need not agree."""
    for epoch in (slice(0, 2), slice(2, 4)):
        assert sorted(flat(flat(rank[epoch] for rank in seen(found, name)))) == list(range(16))
    assert seen(found, name) != seen(found, "plain")


def test_a_sampler_that_draws_is_dealt_from_one_order(found: Found) -> None:
    """A `WeightedRandomSampler` of the script's, which draws from the global generator."""
    import torch

    from mainspring.data.random_stream import DataStream

    torch.default_generator.manual_seed(DataStream(42).order(0))
    expected = torch.multinomial(torch.ones(16, dtype=torch.float64), 16, True).tolist()
    first, second = seen(found, "weighted")
    assert [*first[0], *second[0], *first[1], *second[1]] == expected


@pytest.mark.parametrize("name", STOPS)
def test_a_resumed_run_sees_what_is_left(name: str, found: Found) -> None:
    for rank in found:
        for what in ("seen", "noise", "weight"):
            assert rank[f"{name}, resumed"][what] == rank[name][what]


def test_a_loader_of_the_scripts_own_is_each_processs_own(found: Found) -> None:
    first, second = seen(found, "shuffled")
    assert sorted(flat(first[:3])) == sorted(flat(second[:3])) == list(range(10))
    assert first != second


def test_loaders_of_the_scripts_own_may_differ_in_length(found: Found) -> None:
    """Six samples on the first process and 13 on the second: two and four batches in each of two epochs."""
    first, second = seen(found, "own lengths")
    for epoch in range(2):
        assert sorted(flat(first[2 * epoch :][:2])) == list(range(6))
        assert sorted(flat(second[4 * epoch :][:4])) == list(range(13))
    assert [rank["own lengths"]["steps"] for rank in found] == [8, 8]


@pytest.mark.parametrize("name", EVALUATED)
def test_a_prediction_has_every_sample_once(name: str, found: Found) -> None:
    """Eleven samples for two processes in batches of four; a stream of shards of three and eight."""
    for rank in found:
        assert rank["predicted"][name] == list(range(11))
        assert sorted(rank["streamed"][name]) == list(range(11))


SAID = {
    "indivisible": "ValueError: split_batches=True divides batches of 3 samples among 2 processes",
}


@pytest.mark.parametrize("name", SAID)
def test_what_cannot_be_is_refused_by_all(name: str, found: Found) -> None:
    for rank in found:
        assert rank["errors"][name].startswith(SAID[name])


def test_all_hear_of_what_the_reader_cannot_read(found: Found) -> None:
    assert found[0]["errors"]["broken"] == "OSError: sample 9 cannot be read"
    assert "the first process, which reads for all, failed: OSError" in found[1]["errors"]["broken"]
    assert {*SAID, "broken"} == {*FAILING}
