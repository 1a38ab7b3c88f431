"""Killing a run from outside at a chosen instant.

A run is a process of its own, forked by a server that has imported torch already. At the instants that are asked for
it says so through a pipe and stands still, so that the SIGKILL meets it exactly there; nothing in it is told to clean
up.
"""

from __future__ import annotations

import builtins
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults.runs import Scenario, run

from mainspring import TrainerCallback

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "mainspring.trainer", "mainspring.engines.accelerator", "tests.faults.runs"])
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Instant:
    """When to kill.

    Attributes:
        phase: What the run is doing then; the table of hits counts by it.
        kind: "audit", "event", "write" or "size".
        what: The audit event (`os.rename`), the trainer's event (`on_evaluate`), or the file that is being written.
        count: The how manieth time.
    """

    phase: str
    kind: str
    what: str
    count: int = 1


def kill_at(instant: Instant, scenario: Scenario, folder: Path) -> bool:
    """Start or continue a run and kill it at the instant; False if it came to its end before."""
    ours, theirs = _SERVER.Pipe()
    process = _SERVER.Process(target=_watched_run, args=(theirs, instant, scenario, folder))
    process.start()
    theirs.close()
    if instant.kind == "size":
        _wait_for_size(folder, instant, process)
    else:
        try:
            ours.poll(_PATIENCE_S) and ours.recv()
        except EOFError:  # it ended without coming by
            process.join()
            return False
    alive = process.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return alive and process.exitcode == -signal.SIGKILL


def finish(scenario: Scenario, folder: Path) -> None:
    """Start or continue a run and let it come to its end."""
    process = _SERVER.Process(target=run, args=(scenario, folder))
    process.start()
    process.join(_PATIENCE_S)
    assert process.exitcode == 0, f"{scenario.name}: the run ended with status {process.exitcode}"


def _wait_for_size(folder: Path, instant: Instant, process: Any) -> None:
    """Until a file that is being written holds something, and not yet all of it."""
    deadline = time.monotonic() + _PATIENCE_S
    while process.is_alive() and time.monotonic() < deadline:
        for path in folder.glob(f".checkpoint-*.partial/{instant.what}"):
            try:
                if path.stat().st_size >= instant.count:
                    return
            except FileNotFoundError:
                continue


def _watched_run(pipe: Connection, instant: Instant, scenario: Scenario, folder: Path) -> None:
    gate = _Gate(pipe, instant.count)
    watching: list[TrainerCallback] = []
    if instant.kind == "event":
        watching.append(_Watch(instant.what, gate))
    elif instant.kind == "audit":
        sys.addaudithook(_hook(instant.what, gate))
    elif instant.kind == "write":
        _watch_writes(instant.what, gate)
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
    def __init__(self, event: str, gate: _Gate) -> None:
        setattr(self, event, lambda *args, **kwargs: gate())


def _hook(what: str, gate: _Gate) -> Callable[[str, tuple[Any, ...]], None]:
    """Audit events of Python: `os.rename:partial` is the rename of a stage, `open:manifest` the manifest's opening."""
    event, _, part = what.partition(":")

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == event and any(part in str(arg) for arg in args[:2] if isinstance(arg, (str, bytes, os.PathLike))):
            gate()

    return hook


def _watch_writes(what: str, gate: _Gate) -> None:
    """In the middle of what is written to a stage's file of that name: half of the bytes are in it."""
    original = io.open

    def watched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = original(file, mode, *args, **kwargs)
        named = isinstance(file, (str, os.PathLike)) and Path(file).name == what
        return _Half(stream, gate) if named and mode[0] in "wx" else stream

    io.open = builtins.open = watched  # type: ignore[assignment]


class _Half:
    """A file that stands still in the middle of its first write."""

    def __init__(self, stream: Any, gate: _Gate) -> None:
        self._stream, self._gate = stream, gate

    def write(self, data: Any) -> Any:
        half = len(data) // 2
        self._stream.write(data[:half])
        self._stream.flush()
        self._gate()
        return half + (self._stream.write(data[half:]) or 0)

    def __enter__(self) -> _Half:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
