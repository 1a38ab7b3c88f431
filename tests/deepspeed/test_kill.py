"""SIGKILL of one process of two in the middle of a save: what is left is whole, and ends as the uninterrupted run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("deepspeed")

from mainspring import checkpoint
from tests.deepspeed.killed import Divided
from tests.faults.instants import opening, renaming, rotating, writing, written
from tests.faults.killing import Instant, finish_ranks, kill_rank_at
from tests.faults.test_kill import outcome_of, valid
from tests.helpers.ranks import SERVER, Ended

pytestmark = [pytest.mark.deepspeed, pytest.mark.faults, pytest.mark.slow, pytest.mark.distributed]

SERVER.set_forkserver_preload(
    # Each process would import it anew otherwise, which takes longer than a run.
    [
        "torch",
        "torch._dynamo",
        "mainspring.trainer",
        "mainspring.engines.accelerator",
        "transformers.models.gpt2.modeling_gpt2",
        "deepspeed",
        "mainspring.engines.deepspeed",
    ]
)

STAGE2 = Divided("stage 2")
STAGE3 = Divided("stage 3 in half precision", {"bf16": True}, stage=3)
BACKGROUND = Divided("stage 2", {"save_in_background": True})
"""Which must come to what the one without a thread comes to."""

PIECES = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
HALF_PIECES = f"bf16_{PIECES}"
WEIGHTS = "zero_pp_rank_{}_mp_rank_00_model_states.pt"

CHAINS: dict[str, tuple[Divided, Sequence[tuple[int, Instant]]]] = {
    "stage 2": (
        STAGE2,
        [
            (1, writing(PIECES.format(1))),
            (0, writing("mp_rank_00_model_states.pt", 2)),
            (0, opening("manifest", 3)),
            (0, rotating("os.rename:deleted")),
        ],
    ),
    "stage 3": (
        STAGE3,
        [
            (0, written(HALF_PIECES.format(0))),
            (1, writing(WEIGHTS.format(1), 2)),
            (0, opening("latest", 2)),
            (0, renaming("partial")),
        ],
    ),
    "in the background": (BACKGROUND, [(1, writing(PIECES.format(1), 2)), (0, writing("latest"))]),
}
"""Runs, and where which process of them is killed, one kill after another: each goes on from what the one before it left."""


class Chain:
    """One run that was killed again and again, and then came to its end.

    Attributes:
        folder: Its output folder.
        ended: How its processes ended, at each kill.
        left: The whole checkpoints after each kill.
    """

    def __init__(self, folder: Path, scenario: Divided, kills: Sequence[tuple[int, Instant]]) -> None:
        self.folder = folder
        self.ended: list[list[Ended]] = []
        self.left: list[list[str]] = []
        for rank, instant in kills:
            self.ended.append(kill_rank_at(rank, instant, scenario, folder))
            self.left.append(valid(folder))
        finish_ranks(scenario, folder)


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Chain]]]:
    """All chains, and the undisturbed run of each scenario; two go side by side."""
    root = tmp_path_factory.mktemp("killed")
    whole = {f"undisturbed {scenario.name}": (scenario, ()) for scenario in (STAGE2, STAGE3)}
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(Chain, root / name.replace(" ", "-") / "run", scenario, kills)
            for name, (scenario, kills) in {**CHAINS, **whole}.items()
        }


def whole_of(name: str, chains: dict[str, Future[Chain]]) -> dict[str, Any]:
    """What the undisturbed run came to."""
    return outcome_of(chains[f"undisturbed {CHAINS[name][0].name}"].result().folder)


@pytest.mark.parametrize("name", CHAINS)
def test_the_process_that_is_left_ends_with_an_error(name: str, chains: dict[str, Future[Chain]]) -> None:
    """By itself: it knows who is gone."""
    chain = chains[name].result()
    for ended, (rank, instant) in zip(chain.ended, CHAINS[name][1], strict=True):
        assert ended[rank].status == -9
        left = ended[1 - rank]
        assert left.status == 1, (str(instant), left.text)
        assert f"rank {rank} is not heard of any more" in left.text, str(instant)


@pytest.mark.parametrize("name", CHAINS)
def test_the_run_goes_on_as_if_nothing_had_happened(name: str, chains: dict[str, Future[Chain]]) -> None:
    """The same weights and the same log; a kill takes no checkpoint away, and leaves no half of one."""
    chain = chains[name].result()
    newest = [max((int(name.rpartition("-")[2]) for name in left), default=0) for left in chain.left]
    assert newest == sorted(newest)
    assert outcome_of(chain.folder) == whole_of(name, chains)
    left = sorted(path.name for path in chain.folder.iterdir() if path.name != checkpoint.ENDED_NAME)
    assert left == valid(chain.folder)


@pytest.mark.parametrize("name", CHAINS)
def test_the_runs_are_deepspeeds(name: str, chains: dict[str, Future[Chain]]) -> None:
    """Two processes; the checkpoint that is left has the pieces of both."""
    facts, scenario = whole_of(name, chains), CHAINS[name][0]
    assert (facts["world_size"], facts["wrapper"], facts["stage"]) == (2, "DeepSpeedEngine", scenario.stage)
    (newest, *_) = sorted(chains[name].result().folder.glob("checkpoint-*"), reverse=True)
    assert len(list(newest.glob("global_step*/*optim_states.pt"))) == 2
    assert facts["step"] == 6
