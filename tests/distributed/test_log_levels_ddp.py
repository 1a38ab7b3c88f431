"""How loud each of several processes is, and that the first goes first: on one machine, and each on a machine."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import PROCESSES, one_process_per_machine, torchrun
from tests.distributed.worker_log_levels import CASES, SPOKEN
from tests.helpers.sides import REFERENCE, SUBJECT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

DEBUG, INFO, WARNING, ERROR = SPOKEN.values()

ONE_MACHINE = {
    "nothing said": (WARNING, WARNING),
    "quiet replicas": (WARNING, ERROR),
    "one voice in all": (ERROR, ERROR),
    "one talks, of all": (DEBUG, ERROR),
    "passive replicas": (INFO, WARNING),
}
TWO_MACHINES = {
    "nothing said": (WARNING, WARNING),
    "quiet replicas": (WARNING, WARNING),  # each is the first of its machine
    "one voice in all": (ERROR, ERROR),
    "one talks, of all": (DEBUG, ERROR),
    "passive replicas": (INFO, INFO),
}


def _ranks(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("one")
    torchrun("tests.distributed.worker_log_levels", str(out), timeout=180)
    return _ranks(out)


@pytest.fixture(scope="module")
def two_machines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("two")
    one_process_per_machine("tests.distributed.worker_log_levels", str(out), timeout=180)
    return _ranks(out)


def _check(case: str, expected: tuple[int, int], ranks: list[dict[str, Any]]) -> None:
    for rank, level in zip(ranks, expected, strict=True):
        for side in (SUBJECT, REFERENCE):
            assert (
                rank["levels"][case][side.name]["of the process"]
                == rank["levels"][case][side.name]["by the Trainer"]
                == level
            )
        names = ("script",) if SUBJECT.is_reference else ("script", "mainspring.room")
        heard = [logging.getLevelName(spoken) for spoken in SPOKEN.values() if spoken >= level]
        assert rank["levels"][case][SUBJECT.name]["lines"] == [[spoken, name] for spoken in heard for name in names]


@pytest.mark.parametrize("case", CASES)
def test_the_first_process_of_a_machine_has_one_level_and_the_others_have_another(
    case: str, one_machine: list[dict[str, Any]]
) -> None:
    _check(case, ONE_MACHINE[case], one_machine)


@pytest.mark.parametrize("case", CASES)
def test_over_machines_each_has_a_first_process_unless_one_is_to_log(
    case: str, two_machines: list[dict[str, Any]]
) -> None:
    _check(case, TWO_MACHINES[case], two_machines)


def test_the_first_process_goes_first(one_machine: list[dict[str, Any]]) -> None:
    for rank in one_machine:
        assert rank["too early"] == [False] * 4


@pytest.mark.skipif(SUBJECT.is_reference, reason="about our own words")
def test_waiting_is_said_at_level_debug(one_machine: list[dict[str, Any]], two_machines: list[dict[str, Any]]) -> None:
    first, second = (rank["heard"] for rank in one_machine)
    assert first == ["inside", "process 0 has finished, and lets the others go on: tokenizing"]
    assert second == ["process 1 waits for the first on its machine to finish: tokenizing", "inside"]
    for rank in two_machines:
        assert rank["heard"][0] == "inside"
