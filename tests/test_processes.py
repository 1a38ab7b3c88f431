"""First or not, and the first one first."""

from __future__ import annotations

import pytest
from torch import distributed

from mainspring.processes import is_main_process, torch_distributed_zero_first


@pytest.mark.parametrize(("local_rank", "first"), [(-1, True), (0, True), (1, False), (7, False)])
def test_the_first_process_of_a_machine(local_rank: int, first: bool) -> None:
    assert is_main_process(local_rank) is first


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens in a process that has joined a group whose barrier is noted."""
    noted: list[str] = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "barrier", lambda: noted.append("barrier"))
    return noted


@pytest.mark.parametrize(("local_rank", "order"), [(-1, ["body"]), (0, ["body", "barrier"]), (1, ["barrier", "body"])])
def test_the_others_wait_for_the_first(local_rank: int, order: list[str], events: list[str]) -> None:
    with torch_distributed_zero_first(local_rank):
        events.append("body")
    assert events == order


def test_a_failure_of_the_first_lets_the_others_go(events: list[str]) -> None:
    with pytest.raises(OSError, match="disk full"), torch_distributed_zero_first(0):
        raise OSError("disk full")
    assert events == ["barrier"]


@pytest.mark.parametrize("local_rank", [-1, 0])
def test_a_lone_process_waits_for_nobody(local_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with torch_distributed_zero_first(local_rank):
        assert not distributed.is_initialized()


def test_processes_that_have_not_joined_cannot_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2.*args\.device"), torch_distributed_zero_first(1):
        pytest.fail("the body ran before the first process had finished it")
