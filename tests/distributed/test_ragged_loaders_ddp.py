"""Two processes on ragged texts: packed rows, orders by length, and going on with them, on fewer or more processes too."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.distributed.launch import PROCESSES, forked
from tests.distributed.worker_ragged_loaders import ORDERS, PLAIN, STOPS, texts, train
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own orders"),
]

ALL = set(range(1, len(texts()) + 1))
Run = dict[str, Any]


class Runs(NamedTuple):
    """What was found: by one process of its own, and by each of two."""

    folder: Path
    alone: dict[str, Run]
    ranks: list[dict[Any, Run]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every run of one process that another one is compared with or goes on with, and those of two processes."""
    out = tmp_path_factory.mktemp("ragged")
    alone = {name: train(out / "alone" / name, **options) for name, options in ORDERS.items()}
    packed = {**PLAIN, **ORDERS["packed"], "per_device_train_batch_size": 2}
    alone["plain"] = train(out / "plain alone", dropout=0.0, **packed)
    forked("tests.distributed.worker_ragged_loaders", str(out))
    return Runs(out, alone, [torch.load(out / f"ragged-rank{rank}.pt", weights_only=True) for rank in range(PROCESSES)])


def numbers(batches: list[list[list[int]]]) -> list[int]:
    """The samples of some micro-batches, by their numbers: each once for a micro-batch."""
    return list(chain.from_iterable({*chain.from_iterable(batch)} - {0} for batch in batches))


def rounds(shares: list[list[list[list[int]]]]) -> tuple[list[int], list[int]]:
    """The samples of all processes before their last round, and in it: it is filled up, so that each has a batch."""
    before = numbers([batch for share in shares for batch in share[:-1]])
    return before, numbers([share[-1] for share in shares])


def test_packed_updates_of_two_processes_are_those_of_one(runs: Runs) -> None:
    """The same rows in the same updates: losses, norms of gradients and weights, to rounding."""
    alone, (first, second) = runs.alone["plain"], [rank["plain"] for rank in runs.ranks]
    assert len(alone["seen"]) == len(first["seen"]) > 3
    for whole, one, other in zip(alone["seen"], first["seen"], second["seen"], strict=True):
        assert [{*row} - {0} for row in whole] == [{*row} - {0} for row in [*one, *other]]
    assert first["losses"] == second["losses"]
    torch.testing.assert_close(torch.tensor(first["losses"]), torch.tensor(alone["losses"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-5, atol=1e-7)
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


@pytest.mark.parametrize("order", ORDERS)
def test_an_epoch_of_two_processes_has_every_sample(order: str, runs: Runs) -> None:
    steps = runs.ranks[0][order]["epoch_steps"]
    for epoch in (slice(0, steps), slice(steps, 2 * steps)):
        before, last = rounds([rank[order]["seen"][epoch] for rank in runs.ranks])
        assert len(before) == len({*before})
        assert {*before, *last} == ALL


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_resumed_run_of_two_processes_is_the_same_run(order: str, stop: int, runs: Runs) -> None:
    """Its batches, and, with dropout, its losses and weights, to the bit."""
    for rank in runs.ranks:
        whole, rest = rank[order], rank[order, stop]
        assert stop % whole["epoch_steps"]  # inside an epoch
        assert rest["seen"] == whole["seen"][stop:]
        assert rest["losses"] == whole["losses"]
        assert all(torch.equal(value, rest["weights"][name]) for name, value in whole["weights"].items())


@pytest.mark.parametrize("order", ORDERS)
def test_two_processes_go_on_with_what_one_has_left(order: str, runs: Runs) -> None:
    done = numbers(runs.alone[order]["seen"][: STOPS[0]])
    before, last = rounds([rank[order, "taken over"]["seen"] for rank in runs.ranks])
    assert len([*done, *before]) == len({*done, *before}) > len(ALL) // 2
    assert {*done, *before, *last} == ALL


@pytest.mark.parametrize("order", ORDERS)
def test_one_process_goes_on_with_what_two_have_left(order: str, runs: Runs, tmp_path: Path) -> None:
    checkpoint = runs.folder / order / f"checkpoint-{STOPS[0]}"
    done = numbers([batch for rank in runs.ranks for batch in rank[order]["seen"][: STOPS[0]]])
    rest = numbers(train(tmp_path, checkpoint, **{**ORDERS[order], "num_train_epochs": 1})["seen"])
    assert sorted([*done, *rest]) == sorted(ALL)
