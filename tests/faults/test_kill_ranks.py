"""SIGKILL of one rank of two at any instant: what is left can be gone on from, and ends as the uninterrupted run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.faults.instants import event, opening, renaming, rotating, writing, written
from tests.faults.killing import Instant, finish_ranks, kill_rank_at
from tests.faults.runs import ALONE, BACKGROUND, Scenario
from tests.faults.test_kill import outcome_of, valid
from tests.helpers.ranks import Ended

from mainspring import checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.distributed]

Kill = tuple[int, Instant, str]
"""A rank, when it is killed, and what the other is doing then, as its error says."""

IN_SAVE = "saving checkpoint-"

CHAINS: dict[str, tuple[Scenario, Sequence[Kill]]] = {
    "training": (ALONE, [(1, event("on_substep_end", 2), "training"), (0, event("on_step_begin", 4), "training")]),
    "evaluation": (ALONE, [(1, event("on_prediction_step"), "evaluation"), (0, event("on_evaluate"), "training")]),
    "before a file": (ALONE, [(1, writing("rng_state_1.pth"), IN_SAVE), (0, writing("optimizer.pt", 2), IN_SAVE)]),
    "after a file": (ALONE, [(1, written("rng_state_1.pth", 2), IN_SAVE), (0, written("rng_state_0.pth"), IN_SAVE)]),
    "commit": (ALONE, [(0, opening("manifest", 3), IN_SAVE), (0, renaming("partial"), IN_SAVE)]),
    "after the commit": (
        ALONE,
        [(1, event("on_save"), ""), (0, event("on_save"), ""), (0, rotating("os.rename:deleted"), "")],
    ),
    "in the background": (BACKGROUND, [(1, event("on_step_end", 3), "training"), (0, renaming("partial"), "")]),
}
"""Runs, and where they are killed, one kill after another: each continues what the one before it has left."""


class Chain:
    """One run that was killed again and again, and then came to its end.

    Attributes:
        folder: Its output folder.
        ended: How its ranks ended, at each kill.
        left: The valid checkpoints after each kill.
    """

    def __init__(self, folder: Path, scenario: Scenario, kills: Sequence[Kill]) -> None:
        self.folder = folder
        self.ended: list[list[Ended]] = []
        self.left: list[list[str]] = []
        for rank, instant, _ in kills:
            self.ended.append(kill_rank_at(rank, instant, scenario, folder))
            self.left.append(valid(folder))
        finish_ranks(scenario, folder)


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Chain]]]:
    """All chains. The ranks that are left spend their time finding out who is gone: two chains go side by side."""
    root = tmp_path_factory.mktemp("ranks")
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(Chain, root / name.replace(" ", "-") / "run", scenario, kills)
            for name, (scenario, kills) in {**CHAINS, "whole": (ALONE, [])}.items()
        }


@pytest.fixture(scope="module")
def whole(chains: dict[str, Future[Chain]]) -> dict[str, Any]:
    """What the uninterrupted run came to."""
    return outcome_of(chains["whole"].result().folder)


@pytest.mark.parametrize("name", CHAINS)
def test_the_rank_that_is_left_ends_with_an_error(name: str, chains: dict[str, Future[Chain]]) -> None:
    """By itself, and wherever it was: it knows who is gone."""
    chain = chains[name].result()
    for ended, (rank, instant, phase) in zip(chain.ended, CHAINS[name][1], strict=True):
        left = ended[1 - rank]
        assert left.status == 1, (str(instant), left.text)
        assert f"rank {1 - rank} of 2 lost the other processes in {phase}" in left.text, str(instant)
        assert f"rank {rank} is not heard of any more" in left.text


@pytest.mark.parametrize("name", CHAINS)
def test_the_run_goes_on_from_a_valid_checkpoint_as_if_nothing_had_happened(
    name: str, chains: dict[str, Future[Chain]], whole: dict[str, Any]
) -> None:
    chain = chains[name].result()
    steps = [[int(left.removeprefix("checkpoint-")) for left in lefts] for lefts in chain.left]
    newest = [max(found, default=0) for found in steps]
    assert newest == sorted(newest), "a kill takes no checkpoint away"
    assert outcome_of(chain.folder) == whole
    left = sorted(path.name for path in chain.folder.iterdir() if path.name != checkpoint.ENDED_NAME)
    assert left == valid(chain.folder), "nothing of the dead is left"


def test_the_uninterrupted_run_had_two_ranks(chains: dict[str, Future[Chain]]) -> None:
    """Else all of this would be about one process."""
    (newest, *_) = sorted(chains["whole"].result().folder.glob("checkpoint-*"), reverse=True)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in newest.iterdir()}
    assert checkpoint.read_manifest(newest).facts.world_size == 2
