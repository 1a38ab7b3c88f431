"""How a job ended: its exit code, after what its processes ended with."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from mainspring.launch import elastic


def failure(*codes: int) -> Any:
    """torch's error for processes that ended with these codes, the first one first."""
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=rank) for rank, code in enumerate(codes)}
    return SimpleNamespace(failures=failures)


@pytest.mark.parametrize(
    ("codes", "status", "said"),
    [
        ((3,), 3, "process 0 ended with status 3; "),
        ((1, -15), 1, "process 0 ended with status 1; "),
        ((-15, 1), 1, "process 1 ended with status 1; "),
        ((-15, 75), 75, "stopped with a checkpoint"),
        ((-15, -15), 143, "process 0 was ended by signal 15; "),
        ((-9, 1), 137, "process 0 was ended by signal 9, the first of 2 to fail; "),
        ((75, 75), 75, "stopped with a checkpoint"),
        ((75, 1, -6), 1, "process 1 ended with status 1, the first of 2 to fail; "),
    ],
)
def test_a_failure_has_the_status_of_the_first(
    codes: tuple[int, ...], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert elastic._failed(failure(*codes)) == status
    assert capsys.readouterr().err.startswith(f"mainspring: {said}")


@pytest.mark.parametrize(
    ("asked", "statuses", "status"),
    [
        ("SIGTERM", [75, 75], 75),
        ("SIGUSR1", [75, 0], 75),
        ("SIGTERM", [0, 0], 0),
        ("SIGTERM", [75, -9], 137),
        ("SIGTERM", [-15, -15], 143),
        ("SIGTERM", [], 143),
        ("SIGINT", [1, 1], 130),
        ("SIGINT", [0, 0], 0),
    ],
)
def test_a_job_that_a_signal_stopped_ends_as_its_processes_did(asked: str, statuses: list[int], status: int) -> None:
    assert elastic._stopped(signal.Signals[asked], statuses) == status
