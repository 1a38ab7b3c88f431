"""Phases, waits and sessions of one process; what several do about them is in `tests/distributed/test_lost.py`."""

from __future__ import annotations

import pytest

from mainspring.engines.watch import Watch
from mainspring.errors import MainspringError, OptionError, ProcessesError, between_processes

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:4522: Connection reset by peer"
)


class QuietPeers:
    """Nobody is asked, nobody answers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def begin(self) -> None: ...

    def news(self) -> None: ...

    def end(self, how: str, what: str) -> None:
        self.told.append((how, what))

    def account(self) -> str:
        return "rank 0 is gone"


@pytest.fixture
def watch() -> Watch:
    watch = Watch(rank=1, world_size=4, limit_s=30.0)
    watch._peers = QuietPeers()  # type: ignore[assignment]
    return watch


def told(watch: Watch) -> list[tuple[str, str]]:
    assert isinstance(watch._peers, QuietPeers)
    return watch._peers.told


def test_an_error_between_processes_names_rank_phase_and_limit(watch: Watch) -> None:
    step = 16
    with (
        pytest.raises(ProcessesError) as caught,
        watch.session("train()"),
        watch.during(lambda: f"training, update {step + 1}"),
        watch.waiting("a barrier"),
    ):
        raise RuntimeError(GLOO)
    assert str(caught.value) == (
        "rank 1 of 4 lost the other processes in training, update 17, waiting for a barrier (ddp_timeout=30 s): "
        f"rank 0 is gone. What torch says: {GLOO}"
    )
    assert caught.value.phase == "training, update 17"
    assert told(watch) == [("lost", "training, update 17")]


def test_the_innermost_phase_counts_and_ends_with_its_body(watch: Watch) -> None:
    assert watch.phase() == "start"
    with watch.during("training"):
        with watch.during("evaluation"):
            assert watch.phase() == "evaluation"
        assert watch.phase() == "training"
    assert watch.phase() == "start"


def test_other_errors_are_left_as_they_are_and_told(watch: Watch) -> None:
    with pytest.raises(ValueError, match="no such file"), watch.session("train()"), watch.during("training"):
        raise ValueError("no such file")
    assert told(watch) == [("left", "ValueError: no such file (in training)")]


def test_a_session_inside_a_session_is_part_of_it(watch: Watch) -> None:
    with watch.session("train()"), watch.session("evaluate()"):
        pass
    assert told(watch) == [("ended", "train()")]


def lose_and_finish(watch: Watch) -> None:
    """When one is lost, what was under way is finished, and that fails, too."""
    with watch.session("train()"):
        try:
            with watch.during("training, update 3"):
                raise RuntimeError(GLOO)
        finally:
            raise OSError("nor could the save be finished")


def test_what_follows_a_loss_does_not_hide_where_it_began(watch: Watch) -> None:
    with pytest.raises(ProcessesError, match="nor could the save be finished") as caught:
        lose_and_finish(watch)
    assert caught.value.phase == "training, update 3"


@pytest.mark.parametrize(
    ("error", "between"),
    [
        (RuntimeError(GLOO), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError(GLOO), False),
        (MainspringError(GLOO), False),
        (OptionError([]), False),
    ],
)
def test_what_is_between_processes(error: Exception, between: bool) -> None:
    assert between_processes(error) is between


@pytest.mark.parametrize("name", ["DistError", "DistBackendError", "DistNetworkError", "DistStoreError"])
def test_torchs_own_kinds_are_between_processes(name: str) -> None:
    from torch import distributed

    assert between_processes(getattr(distributed, name)("timed out"))
