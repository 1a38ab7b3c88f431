"""A run that loses one of its processes ends by itself, and says which rank was lost, where, and how that was noticed."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from mainspring.errors import EXIT_LOST
from tests.distributed import worker_lost as worker
from tests.helpers import ranks
from tests.helpers.ranks import Ended
from tests.helpers.sides import SUBJECT

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(SUBJECT.is_reference, reason="about Mainspring's own errors"),
]

NO_HOSTS = ranks.why_no_hosts()

LOSSES = {
    "training": ("on_substep_end", 3, "dies", "training, update 3"),
    "evaluation": ("on_prediction_step", 1, "dies", "evaluation after update 2"),
    "training, by a mistake": ("on_substep_end", 3, "fails", "training, update 3"),
    "evaluation, by a mistake": ("on_prediction_step", 1, "fails", "evaluation after update 2"),
    "evaluation, standing still": ("on_prediction_step", 1, "stands still", "evaluation after update 2"),
    "saving": ("save", 1, "dies", "saving checkpoint-2"),
}
"""The event at which rank 1 is lost, the how-manieth time, how, and what rank 0 is doing then."""

CUTS = {
    "training": ("on_step_begin", 3, "training, update 3", 1),
    "evaluation": ("on_prediction_step", 1, "evaluation after update 2", 1),
    # A group that is to be formed goes through the store: what torch waits for on the cut-off side never ends.
    "forming a group": (
        "on_step_end",
        1,
        "training, update 2, waiting for what callbacks of all ranks ask for",
        EXIT_LOST,
    ),
}
"""The event at which the second host is cut off, what both are doing then, and the status with which it ends."""


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ended]]:
    """How the ranks of all these runs ended. The runs spend their time waiting: they do so side by side."""
    folder, worlds = tmp_path_factory.mktemp("lost"), {}
    for name, (event, count, does, _) in LOSSES.items():
        worlds[name] = ranks.World(folder / name, [ranks.HERE] * 2)
        worlds[name].start(worker.one_is_lost, folder / name / "run", event, count, does)
    return {name: world.wait(until=0) for name, world in worlds.items()}


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Ended]]:
    """How the two hosts of all these runs ended."""
    if NO_HOSTS is not None:
        pytest.skip(NO_HOSTS)
    folder, worlds = tmp_path_factory.mktemp("cut"), {}
    with contextlib.ExitStack() as until_the_end:
        for number, (name, (event, count, _, _)) in enumerate(CUTS.items()):
            hosts = until_the_end.enter_context(ranks.two_hosts(number))
            worlds[name] = ranks.World(folder / name, hosts)
            worlds[name].start(worker.is_cut_off, folder / name / "run", event, count, hosts[1])
        return {name: world.wait() for name, world in worlds.items()}


def complaint(ended: Ended) -> str:
    """The error with which a script ended."""
    _, name, message = ended.text.rpartition("\nmainspring.errors.ProcessesError: ")
    assert name, ended.text
    return message


@pytest.mark.parametrize("name", LOSSES)
def test_who_was_lost_and_where_is_said(name: str, lost: dict[str, list[Ended]]) -> None:
    _, _, does, phase = LOSSES[name]
    left, gone = lost[name]
    assert left.status == 1
    message = complaint(left)
    assert message.startswith(f"rank 0 of 2 lost the other processes in {phase}")
    assert f"(ddp_timeout={worker.TIMEOUT_S} s): " in message
    if does == "fails":
        assert gone.status == 1
        assert f": rank 1 left with ZeroDivisionError: a mistake (in {phase}). " in message
    else:
        assert gone.status == -signal.SIGKILL
        assert ": rank 1 is not heard of any more (the last time it was in " in message
    assert ("Timed out waiting" in message) == (does == "stands still")


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_network_ends_both_sides(name: str, cut: dict[str, list[Ended]]) -> None:
    _, _, phase, status = CUTS[name]
    first, second = cut[name]
    assert (first.status, second.status) == (1, status)
    for rank, ended in enumerate((first, second)):
        assert f"rank {rank} of 2 lost the other processes in {phase}" in ended.text
    assert "rank 1 is not heard of any more" in complaint(first)
    assert "the store where the processes met does not answer: this machine may be cut off" in second.text


def test_time_spent_in_ones_own_code_is_no_wait(tmp_path: Path) -> None:
    """All ranks read data, or compute, for longer than a collective may take."""
    assert [ended.status for ended in ranks.run(tmp_path, worker.is_slow_itself)] == [0, 0]


def test_a_wait_that_ends_after_all_ends_nothing(tmp_path: Path) -> None:
    assert [ended.status for ended in ranks.run(tmp_path, worker.wait_ends_late)] == [0, 0]


def test_groups_beside_the_gradients_have_the_same_limit(tmp_path: Path) -> None:
    """Torch would give them half an hour."""
    assert [ended.status for ended in ranks.run(tmp_path, worker.forms_side_channels)] == [0, 0]


def test_a_wait_that_torch_does_not_end_is_ended(tmp_path: Path) -> None:
    first, second = ranks.run(tmp_path, worker.waits_for_ever)
    assert first.status == second.status == EXIT_LOST
    assert "mainspring: rank 0 of 2 lost the other processes in the night, waiting for the day" in first.text
    assert "rank 1 is in the night" in first.text
    assert "in waits_for_ever\n" in first.text, "where the process was"


def test_a_rank_that_never_comes(tmp_path: Path) -> None:
    first, _ = ranks.run(tmp_path, worker.only_the_first_comes)
    assert first.status == 1
    message = complaint(first)
    assert message.startswith("rank 0 of 2 lost the other processes in the start, at 127.0.0.1:")
    assert f"(ddp_timeout={worker.TIMEOUT_S} s): " in message


def test_a_first_process_that_does_not_come_back(tmp_path: Path) -> None:
    """The others wait for what it was to do first."""
    first, second = ranks.run(tmp_path, worker.first_process_dies)
    assert (first.status, second.status) == (-signal.SIGKILL, 1)
    assert complaint(second).startswith("rank 1 of 2 lost the other processes in main_process_first (preparing data)")
