from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from mainspring.checkpoint import LOCK_NAME, lock as module, locked

# Takes the lock, says so, and holds it until its input ends or it is killed.
HOLDER = """
import os, sys
from mainspring.checkpoint.lock import locked
with locked(sys.argv[1]):
    child = os.fork() if "fork" in sys.argv else 1
    if child:
        print("held", child, flush=True)
    sys.stdin.read()
"""
# Tries to take it when its input ends, and says how that went.
CONTENDER = """
import sys
from mainspring.checkpoint.lock import locked
print("ready", flush=True)
sys.stdin.readline()
try:
    with locked(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
except RuntimeError as error:
    print(f"refused: {error}", flush=True)
"""


@contextlib.contextmanager
def process(code: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, *map(str, words)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def line_of(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def let_go(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.close()


# ---- what it keeps out ----


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    with process(HOLDER, tmp_path) as holder:
        assert line_of(holder) == "held 1"
        with pytest.raises(RuntimeError, match="is in use by process") as refused, locked(tmp_path):
            pass
        text = str(refused.value)
        assert f"output_dir={str(tmp_path)!r} is in use by process {holder.pid} on {socket.gethostname()}" in text
        since = datetime.fromisoformat(text.split("since ")[1].split(": two")[0])
        assert before <= since <= datetime.now(timezone.utc)
        let_go(holder)
        assert holder.wait(timeout=60) == 0
    with locked(tmp_path):
        pass


def test_a_second_run_of_the_same_process_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with (
        locked(tmp_path / "out"),
        pytest.raises(RuntimeError, match=rf"another run in this process \({os.getpid()}\)"),
        locked(tmp_path / "link"),
    ):
        pass


def test_the_refused_one_leaves_the_lock_alone(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(RuntimeError), locked(tmp_path):
            pass
        with process(CONTENDER, tmp_path) as other:
            let_go(other)
            assert line_of(other) == "ready"
            assert line_of(other).startswith("refused")


def test_other_folders_are_free(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        assert (tmp_path / "b" / LOCK_NAME).is_file()


def test_of_two_at_the_same_time_one_wins(tmp_path: Path) -> None:
    for _ in range(5):
        with process(CONTENDER, tmp_path) as one, process(CONTENDER, tmp_path) as other:
            both = (one, other)
            assert [line_of(started) for started in both] == ["ready", "ready"]
            for started in both:
                assert started.stdin is not None
                started.stdin.write("go\n")
                started.stdin.flush()
            answers = sorted((line_of(started), started.pid) for started in both)
            assert answers[0][0] == "held"
            assert f"is in use by process {answers[0][1]} on" in answers[1][0]


def test_of_many_threads_one_wins(tmp_path: Path) -> None:
    inside, answers = threading.Barrier(8), []
    done = threading.Event()

    def contend() -> None:
        inside.wait(timeout=60)
        try:
            with locked(tmp_path):
                answers.append("held")
                done.wait(timeout=60)
        except RuntimeError:
            answers.append("refused")
            if len(answers) == 8:
                done.set()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(answers) == ["held", *7 * ["refused"]]


# ---- how it ends ----


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with contextlib.suppress(KeyError), locked(out):
        assert (out / LOCK_NAME).is_file()
        raise KeyError
    assert list(out.iterdir()) == []
    with locked(out):
        pass


def test_it_dies_with_a_killed_run_even_while_its_workers_live(tmp_path: Path) -> None:
    with process(HOLDER, tmp_path, "fork") as holder:
        worker = int(line_of(holder).split()[1])
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=60)
        assert (tmp_path / LOCK_NAME).is_file()
        os.kill(worker, 0)  # it lives
        with locked(tmp_path):
            assert json.loads(_in_another_process(tmp_path / LOCK_NAME))["pid"] == os.getpid()
        os.kill(worker, signal.SIGKILL)


def test_a_forked_worker_that_ends_does_not_take_it_along(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(tmp_path))
        worker = os.fork()
        if not worker:
            stack.close()  # as if it left the body
            os._exit(0)
        os.waitpid(worker, 0)
        with process(CONTENDER, tmp_path) as other:
            let_go(other)
            assert line_of(other) == "ready"
            assert line_of(other).startswith("refused")


def test_a_forked_worker_may_not_take_it_either(tmp_path: Path) -> None:
    with locked(tmp_path):
        worker = os.fork()
        if not worker:
            try:
                with locked(tmp_path):
                    os._exit(1)
            except RuntimeError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0


def test_an_old_file_does_not_count(tmp_path: Path) -> None:
    for content in (b"", b"{", b"[]", json.dumps({"pid": os.getpid(), "host": "elsewhere", "since": "then"}).encode()):
        (tmp_path / LOCK_NAME).write_bytes(content)
        with locked(tmp_path):
            pass


def test_a_lock_that_was_lost_to_a_careless_reader_is_not_taken_from_its_new_holder(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK_NAME).read_bytes()  # closing the file gave the lock back, as POSIX has it
        holder = process(HOLDER, tmp_path)
        started = holder.__enter__()
        assert line_of(started) == "held 1"
    try:
        with pytest.raises(RuntimeError, match=f"in use by process {started.pid}"), locked(tmp_path):
            pass
    finally:
        holder.__exit__(None, None, None)


def test_a_holder_that_does_not_say_who_it_is_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file says may still be about the one before, who is dead."""
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    former = {"pid": _dead(), "host": socket.gethostname(), "since": datetime.now(timezone.utc).isoformat()}
    (tmp_path / LOCK_NAME).write_text(json.dumps(former))
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with process(code, tmp_path / LOCK_NAME) as holder:
        assert line_of(holder) == "1"
        with pytest.raises(RuntimeError, match="in use by a process that does not say who it is"), locked(tmp_path):
            pass


def test_a_file_that_was_removed_before_it_was_locked_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder ended between our opening the file and our locking it: the next one would make a new file."""
    lock_record, calls = module._lock_record, []

    def meanwhile(descriptor: int) -> None:
        lock_record(descriptor)
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / LOCK_NAME).unlink()

    monkeypatch.setattr(module, "_lock_record", meanwhile)
    with locked(tmp_path):
        assert (tmp_path / LOCK_NAME).is_file()


def test_two_threads_do_not_both_find_it_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acquire, both = module._acquire, threading.Barrier(2)

    def slowly(folder: Path) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.2)  # until the other thread is here too, which it must never be
        return acquire(folder)

    monkeypatch.setattr(module, "_acquire", slowly)
    outcomes = []

    def contend() -> None:
        try:
            with locked(tmp_path):
                outcomes.append("held")
                ended.wait(timeout=60)
        except RuntimeError:
            outcomes.append("refused")
            ended.set()

    ended = threading.Event()
    threads = [threading.Thread(target=contend) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(outcomes) == ["held", "refused"]
    assert not (tmp_path / LOCK_NAME).exists()


# ---- where there are no locks ----


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_warning(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockf(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    caplog.set_level(logging.WARNING, "mainspring")
    ran = 0
    for _ in range(2):
        with locked(tmp_path):
            ran += 1
            with pytest.raises(RuntimeError), locked(tmp_path):  # within a process there is no need of the system
                pass
    assert ran == 2
    (record,) = caplog.records
    assert f"{tmp_path} could not be locked ([Errno {number}]" in record.getMessage()


def test_a_folder_that_cannot_be_written_to_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    caplog.set_level(logging.WARNING, "mainspring")
    with locked(tmp_path):
        pass
    assert ["Read-only file system" in record.getMessage() for record in caplog.records] == [True]


# ---- Windows ----


@pytest.fixture
def without_record_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_take_record", module._take_file)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)


def _dead() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait(timeout=60)
    return done.pid


@pytest.mark.usefixtures("without_record_locks")
def test_a_file_is_a_lock_while_its_process_lives(tmp_path: Path) -> None:
    with locked(tmp_path):
        module._held.clear()  # as another process sees it
        with pytest.raises(RuntimeError, match=f"in use by process {os.getpid()} on"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK_NAME).is_file()


@pytest.mark.usefixtures("without_record_locks")
@pytest.mark.parametrize("since", ["2999-01-01T00:00:00+00:00", "1999-01-01T00:00:00+00:00"])
def test_the_file_of_a_process_that_is_gone_is_taken_over(tmp_path: Path, since: str) -> None:
    """Gone is also one whose number a younger process has."""
    pid = _dead() if since.startswith("2") else os.getpid()
    (tmp_path / LOCK_NAME).write_text(json.dumps({"pid": pid, "host": socket.gethostname(), "since": since}))
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_record_locks")
def test_the_file_of_another_machine_is_respected(tmp_path: Path) -> None:
    other = {"pid": _dead(), "host": "elsewhere", "since": "2026-01-02T03:04:05+00:00"}
    (tmp_path / LOCK_NAME).write_text(json.dumps(other))
    with pytest.raises(RuntimeError, match=f"process {other['pid']} on elsewhere, since 2026-01-02"), locked(tmp_path):
        pass


def _in_another_process(file: Path) -> str:
    """Its content; this process would lose the lock by closing it."""
    code = "import sys; print(open(sys.argv[1]).read())"
    return subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=60).stdout
