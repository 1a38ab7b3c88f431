"""Killing a run from outside at a chosen instant.

A run is a process of its own, forked by a server that has imported torch already. At the instants that are asked for
it says so through a pipe and stands still, so that the SIGKILL meets it exactly there; nothing in it is told to clean
up. An instant that does not come is never taken for a hit: the run ended before (`kill_at` is False), or it hangs (an error).
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import io
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults.runs import Scenario, run
from tests.helpers.ranks import HERE, SERVER, Ended, World

from mainspring import TrainerCallback

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    # The compiler is imported by the first optimizer, and takes longer than a run.
    ["torch", "torch._dynamo", "mainspring.trainer", "mainspring.engines.accelerator", "tests.faults.runs"]
)
_PATIENCE_S = 300.0  # what a run takes in seconds takes minutes where too many others run


@dataclass(frozen=True)
class Instant:
    """When to kill.

    Attributes:
        phase: What the run is doing then; the table of hits counts by it.
        kind: "event", "audit", "write", "written", "size", "blocks", "call" or "time".
        what: The trainer's event (`on_evaluate`), the audit event (`os.rename`; empty: any), or the file that is being
            written.
        count: The how manieth time. For "size" how many bytes of the file are written, for "blocks" at least how many, for
            "call" how many functions have been called, for "time" how many milliseconds after training began.
    """

    phase: str
    kind: str
    what: str = ""
    count: int = 1

    @property
    def may_be_missed(self) -> bool:
        """Whether the run goes on until the SIGKILL meets it, or may end before."""
        return self.kind == "blocks" or not self.what

    def __str__(self) -> str:
        return f"{self.kind} {self.what or 'any'} {self.count}"


def kill_at(instant: Instant, scenario: Scenario, folder: Path) -> bool:
    """Start or continue a run and kill it at the instant; False if it came to its end before."""
    ours, theirs = _SERVER.Pipe()
    process = _SERVER.Process(target=_watched_run, args=(theirs, instant, scenario, folder))
    process.start()
    theirs.close()
    try:
        came = _wait_until_it_came(instant, ours, folder)
    finally:
        process.kill()
        process.join()
    if came and instant.kind in _HALF_WRITTEN:
        came = _HALF_WRITTEN[instant.kind](instant, folder)
    return came and process.exitcode == -signal.SIGKILL


def kill_near(instant: Instant, scenario: Scenario, folder: Path) -> Instant:
    """Kill a run at an instant, or sooner where it comes to its end before; returns the instant that it was."""
    before = folder.with_suffix(".before")
    if folder.exists():
        shutil.copytree(folder, before)
    while not kill_at(instant, scenario, folder):
        assert instant.count > 1, "the run cannot be caught"
        instant = replace(instant, count=instant.count // 2)
        shutil.rmtree(folder)
        if before.exists():
            shutil.copytree(before, folder)
    shutil.rmtree(before, ignore_errors=True)
    return instant


def kill_rank_at(rank: int, instant: Instant, scenario: Scenario, folder: Path) -> list[Ended]:
    """Start or continue a run of two ranks, kill one of them at the instant, and let the other come to its own end.

    Raises:
        AssertionError: The run did not come by the instant.
    """
    ours, theirs = SERVER.Pipe()
    world = World(folder.parent / "printed", [HERE] * 2)
    world.start(
        _rank_of_run, scenario, folder, of_rank=lambda other: (instant, theirs) if other == rank else (None, None)
    )
    theirs.close()
    try:
        came = _wait_until_it_came(instant, ours, folder)
        world.processes[rank].kill()
    except BaseException:
        world.kill()
        raise
    ended = world.wait()
    assert came, f"the run did not come by {instant}:\n{ended[rank].text}"
    return ended


def finish_ranks(scenario: Scenario, folder: Path) -> None:
    """Start or continue a run of two ranks and let it come to its end."""
    world = World(folder.parent / "printed", [HERE] * 2)
    world.start(_rank_of_run, scenario, folder, None, None)
    for ended in world.wait():
        assert ended.status == 0, ended.text


def finish(scenario: Scenario, folder: Path) -> None:
    """Start or continue a run and let it come to its end."""
    end(run, 0, scenario, folder)


def end(target: Callable[..., object], expected: int, *arguments: Any) -> None:
    """Call a function in a process of its own, and let it come to its end, with the exit status that is expected."""
    process = _SERVER.Process(target=target, args=arguments)
    process.start()
    process.join(_PATIENCE_S)
    status = process.exitcode
    process.kill()
    assert status == expected, f"the run ended with status {status}"


def _wait_until_it_came(instant: Instant, pipe: Connection, folder: Path) -> bool:
    """False: the run has ended without it."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if instant.kind in _HALF_WRITTEN and _HALF_WRITTEN[instant.kind](instant, folder):
            return True
        try:
            if pipe.poll(0 if instant.kind == "blocks" else 0.01):
                pipe.recv()
                break
        except EOFError:
            return False
    else:
        raise TimeoutError(f"neither the instant ({instant}) nor the end came within {_PATIENCE_S:g} s")
    if instant.kind == "time":  # the one kind that is not cooperative: the run goes on meanwhile
        time.sleep(instant.count / 1000)
    return True


def _has_size(instant: Instant, folder: Path) -> bool:
    """Whether a file of a stage has just the size at which its writer was stopped."""
    return any(file.stat().st_size == instant.count for file in folder.glob(f".checkpoint-*.partial/{instant.what}"))


def _is_filling(instant: Instant, folder: Path) -> bool:
    """Whether a file of a stage that has its full size from the beginning has some of its blocks, and not yet all.

    safetensors gives it its name when it is complete.
    """
    for file in folder.glob(".checkpoint-*.partial/*"):
        with contextlib.suppress(FileNotFoundError):  # it has just been given its name
            status = file.stat()
            if (
                file.name.startswith((instant.what, ".tmp"))
                and instant.count <= status.st_blocks * 512 < status.st_size
            ):
                return True
    return False


_HALF_WRITTEN = {"size": _has_size, "blocks": _is_filling}


def _rank_of_run(scenario: Scenario, folder: Path, instant: Instant | None, pipe: Connection | None) -> None:
    if instant is None or pipe is None:
        run(scenario, folder)
    else:
        _watched_run(pipe, instant, scenario, folder)


def _watched_run(pipe: Connection, instant: Instant, scenario: Scenario, folder: Path) -> None:
    gate = _Gate(pipe, instant.count)
    watching: list[TrainerCallback] = []
    if instant.kind == "event":
        watching.append(_Watch(instant.what, gate))
    elif instant.kind == "audit":
        sys.addaudithook(_hook(instant.what, gate))
    elif instant.kind == "write":
        _watch_writes(instant.what, partial(_Half, gate=gate))
    elif instant.kind == "written":
        _watch_writes(instant.what, partial(_Whole, gate=gate))
    elif instant.kind == "size":
        _stand_still_at_size(instant.count)
    elif instant.kind == "call":
        sys.setprofile(lambda frame, event, arg: gate() if event in ("call", "c_call") else None)
    elif instant.kind == "time":
        watching.append(_Watch("on_train_begin", lambda: pipe.send("began")))
    run(scenario, folder, *watching)


class _Gate:
    """Says that the instant has come, and stands still."""

    def __init__(self, pipe: Connection, count: int) -> None:
        self._pipe, self._left, self._owner = pipe, count, os.getpid()

    def __call__(self) -> None:
        if os.getpid() != self._owner:  # a loader's worker
            return
        self._left -= 1
        if self._left == 0:
            self._pipe.send("here")
            while True:
                signal.pause()


class _Watch(TrainerCallback):
    def __init__(self, event: str, gate: Callable[[], object]) -> None:
        setattr(self, event, lambda *args, **kwargs: gate() and None)


def _hook(what: str, gate: _Gate) -> Callable[[str, tuple[Any, ...]], None]:
    """Audit events of Python: `os.rename:partial` is the rename of a stage, `open:manifest` the manifest's opening."""
    event, _, part = what.partition(":")

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if event and name != event:
            return
        if not part or any(part in str(arg) for arg in args[:2] if isinstance(arg, (str, bytes, os.PathLike))):
            gate()

    return hook


def _stand_still_at_size(size: int) -> None:
    """Let the system stop whatever writes more than this into one file, be it compiled code, in the middle of the write.

    The signal that it sends then has a C function as its handler: Python's own would run after the write had failed.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal(signal.SIGXFSZ, ctypes.cast(library.pause, ctypes.c_void_p))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _watch_writes(what: str, watch: Callable[[Any], Any]) -> None:
    """Put a watch on every file of that name that is opened to be written."""
    original = io.open

    def watched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = original(file, mode, *args, **kwargs)
        named = isinstance(file, (str, os.PathLike)) and Path(file).name == what
        return watch(stream) if named and mode[0] in "wx" else stream

    io.open = builtins.open = watched  # type: ignore[assignment]


class _Watched:
    """A file at which its writer stands still."""

    def __init__(self, stream: Any, gate: _Gate) -> None:
        self._stream, self._gate = stream, gate

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Whole(_Watched):
    """Once it is complete."""

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._gate()


class _Half(_Watched):
    """In the middle of its first write: half of the bytes are in it."""

    def write(self, data: Any) -> Any:
        half = len(data) // 2
        self._stream.write(data[:half])
        self._stream.flush()
        self._gate()
        return half + (self._stream.write(data[half:]) or 0)
