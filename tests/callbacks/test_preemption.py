"""Requests to stop: what is noted, what is left alone, and loader workers that outlive the signals."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mainspring.callbacks import preemption
from mainspring.callbacks.preemption import StopRequests, shield_worker
from mainspring.errors import EXIT_RESUMABLE, Preempted

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="about the signals of POSIX")


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Each test leaves the handlers as it found them."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    former = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)


# ---- what is noted ----


@pytest.mark.parametrize("name", preemption.DEFAULT_SIGNALS)
def test_a_signal_is_noted_and_the_handler_given_back(name: str) -> None:
    number = signal.Signals[name]
    former = signal.getsignal(number)
    stops = StopRequests(preemption.DEFAULT_SIGNALS)
    with stops.listen():
        assert not stops.wanted()
        signal.raise_signal(number)
        assert stops.wanted()
    assert stops.reason == name
    assert signal.getsignal(number) == former


def test_the_handlers_come_back_after_an_error() -> None:
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequests(["SIGTERM"]).listen():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) == former


def test_the_first_request_gives_the_reason() -> None:
    stops = StopRequests(["SIGTERM", "SIGUSR1"], seconds=0.0)
    with stops.listen():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
    assert stops.wanted()
    assert stops.reason == "SIGUSR1"


def test_what_is_switched_off_stays_off() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    stops = StopRequests(["SIGUSR1"])
    with stops.listen():
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
        signal.raise_signal(signal.SIGUSR1)
    assert not stops.wanted()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN


def test_a_handler_of_the_users_own_has_it_too() -> None:
    heard: list[tuple[int, bool]] = []

    def own(number: int, frame: FrameType | None) -> None:
        heard.append((number, frame is not None))

    signal.signal(signal.SIGTERM, own)
    stops = StopRequests(["SIGTERM"])
    with stops.listen():
        signal.raise_signal(signal.SIGTERM)
    assert stops.reason == "SIGTERM"
    assert heard == [(signal.SIGTERM, True)]


def test_a_second_interrupt_stops_at_once() -> None:
    stops = StopRequests(["SIGINT"])
    with stops.listen():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_after_another_signal_is_the_first_of_its_kind() -> None:
    stops = StopRequests(["SIGINT", "SIGTERM"])
    with stops.listen():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert not stops.was_interrupted


def test_a_forked_child_is_not_asked() -> None:
    stops = StopRequests(["SIGTERM"])
    with stops.listen():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(int(stops.wanted()))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "it lived on, and noted nothing"


def test_only_the_main_thread_can_listen() -> None:
    """Elsewhere the signals keep their handlers; the clock works."""
    former = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def work() -> None:
        stops = StopRequests(["SIGTERM"], seconds=0.0)
        with stops.listen():
            seen.append((signal.getsignal(signal.SIGTERM), stops.wanted()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(former, True)]


def test_signals_that_a_platform_lacks_are_left_out() -> None:
    assert not StopRequests(["SIGNOSUCH"]).active
    assert StopRequests(["SIGNOSUCH", "SIGTERM"]).active
    with StopRequests(["SIGNOSUCH"]).listen():
        pass


# ---- the clock ----


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock; its one item is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_time_is_up_at_the_deadline(clock: list[float]) -> None:
    stops = StopRequests(seconds=60)
    assert stops.active
    clock[0] = 159.9
    assert not stops.wanted()
    clock[0] = 160.0
    assert stops.wanted()
    assert stops.reason == "max_time=60 s"


def test_the_slowest_save_is_kept_back(clock: list[float]) -> None:
    stops = StopRequests(seconds=60)
    stops.keep_back(20)
    stops.keep_back(5)
    clock[0] = 139.9
    assert not stops.wanted()
    clock[0] = 140.0
    assert stops.wanted()


def test_nothing_asks_unless_told_to() -> None:
    stops = StopRequests()
    assert not stops.active
    assert not stops.wanted()


# ---- how the run ends ----


def test_a_run_ends_with_a_status_that_says_it_can_go_on() -> None:
    with pytest.raises(SystemExit) as ended:
        raise StopRequests().ending("stopped at step 3")
    assert isinstance(ended.value, Preempted)
    assert ended.value.code == EXIT_RESUMABLE == 75
    assert str(ended.value) == "stopped at step 3"


def test_after_an_interrupt_it_ends_as_python_does() -> None:
    stops = StopRequests(["SIGINT"])
    with stops.listen():
        signal.raise_signal(signal.SIGINT)
    assert type(stops.ending("stopped at step 3")) is KeyboardInterrupt


# ---- loader workers ----


class Pids(Dataset[int]):
    """Each sample is the process that read it."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> int:
        return os.getpid()


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_outlive_the_signals_that_ask_to_stop(context: str) -> None:
    """All of them reach each worker in the middle of an epoch, which the training process then finishes."""
    loader = DataLoader(
        Pids(), 2, num_workers=2, multiprocessing_context=context, worker_init_fn=shield_worker, prefetch_factor=1
    )
    batches = iter(loader)
    seen = [next(batches), next(batches)]  # both workers have started
    workers = {int(pid) for batch in seen for pid in batch}
    assert len(workers) == 2
    assert os.getpid() not in workers
    for pid in workers:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            os.kill(pid, number)
    seen += list(batches)
    assert {int(pid) for pid in torch.cat(seen)} == workers
    assert len(torch.cat(seen)) == 16


def test_a_worker_that_is_stuck_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is over that a SIGTERM leaves it."""
    monkeypatch.setattr(preemption, "_GRACE_S", 1)
    ready, started = os.pipe()
    child = os.fork()
    if child == 0:
        shield_worker()
        os.write(started, b"1")
        while True:
            signal.pause()
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    os.close(ready)
    os.close(started)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGALRM
