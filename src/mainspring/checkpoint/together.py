"""Processes that write one checkpoint: what they ask of each other, and whose disk is whose."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


class Channel(Protocol):
    """A way between the processes that nothing else uses, so that a thread of each can meet the others' there."""

    @property
    def group(self) -> Any:
        """The process group behind it, for torch's collectives; None: there is none."""

    def every(self, value: Any) -> list[Any]:
        """The values of all processes by rank, picklable objects."""


class Processes(Protocol):
    """What a save asks of the engine."""

    @property
    def rank(self) -> int:
        """Which of the processes this is."""

    def share(self, value: Any) -> Any:
        """The main process's value."""

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""

    def every(self, value: Any) -> list[Any]:
        """The values of all processes by rank, picklable objects."""

    def channel(self) -> Channel | None:
        """A new channel; None with one process. All processes ask for it together."""


class OneDisk:
    """All processes write into one folder, which the main process makes.

    Attributes:
        writes: Whether this process makes it.
    """

    def __init__(self, processes: Processes, writes: bool) -> None:
        self.writes = writes
        self._processes = processes

    def share(self, value: Any) -> Any:
        """The value of the process that makes the folder."""
        return self._processes.share(value)


class DiskPerMachine:
    """Each machine has a disk of its own, and a process that makes the folders there: its first.

    Attributes:
        writes: Whether this process does.
    """

    def __init__(self, processes: Processes, writes: bool) -> None:
        self.writes = writes
        self._processes = processes
        self._leader: int | None = None

    def share(self, value: Any) -> Any:
        """The value of the process that makes the folders on this one's machine."""
        if self._leader is None:
            writing = self._processes.every(self.writes)
            # Launchers number the processes machine by machine.
            self._leader = max(rank for rank in range(self._processes.rank + 1) if writing[rank])
        return self._processes.every(value)[self._leader]


Disk = OneDisk | DiskPerMachine


def by_writers(work: Callable[[], Any], processes: Processes, disk: Disk) -> Any:
    """Return what the process finds out that makes the folders on this one's disk; an error of one is everybody's.

    Args:
        work: What it does; the result is a picklable object.
        processes: Those of the run; all of them call this.
        disk: Whose disk is whose.
    """
    result = error = None
    if disk.writes:
        try:
            result = work()
        except Exception as problem:  # noqa: BLE001 (raised below, on every process)
            error = problem
    errors = [one for one in processes.every(error and _that_travels(error)) if one is not None]
    if errors:
        raise error or errors[0]
    return disk.share(result)


def _that_travels(error: Exception) -> Exception:
    """The error, or, where another process could not rebuild it, one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (whatever its class does when it is rebuilt)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def in_any_case(*steps: Callable[[], object]) -> None:
    """Take every step, also after an error in one: processes meet in some of them, and those that meet with none wait there.

    Raises:
        Exception: The first error.
    """
    first: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001 (raised below)
            first = first or error
    if first is not None:
        raise first


class FailedElsewhereError(OSError):
    """What a process is left with that could do its own part, when another could not."""


@dataclass(frozen=True)
class Told:
    """An exception on its way to other processes, which need not know its class.

    Attributes:
        text: What it says.
        number: The system's number of it, where the system refused something.
        file: The file that was refused.
    """

    text: str
    number: int | None = None
    file: str | None = None

    @classmethod
    def of(cls, error: BaseException | None) -> Told | None:
        """What is told of an exception."""
        if error is None or isinstance(error, FailedElsewhereError):
            return None
        if isinstance(error, OSError):
            file = None if error.filename is None else os.fspath(error.filename)
            return cls(error.strerror or str(error), error.errno or 0, file)
        return cls(f"{type(error).__name__}: {error}")

    def as_exception(self, rank: int) -> Exception:
        """An exception that says so."""
        text = f"{self.text} (process {rank})"
        if self.number is None:
            return RuntimeError(text)
        return OSError(self.number, text, self.file) if self.number else OSError(text)


def agreed(error: BaseException | None, every: Callable[[Any], list[Any]]) -> BaseException | None:
    """Return what stands in the way of a save, the same kind everywhere; None: nothing does.

    An error of the program comes before one of the system. A process that ran into it has its own exception.

    Args:
        error: What this process ran into.
        every: Gathers a value of every process.
    """
    told: list[Told | None] = every(Told.of(error))
    failed = {rank: one for rank, one in enumerate(told) if one is not None}
    grave = {rank: one for rank, one in failed.items() if one.number is None}
    if not failed:
        return error
    if Told.of(error) is not None and isinstance(error, OSError) == (not grave):
        return error
    rank, first = next(iter((grave or failed).items()))
    return first.as_exception(rank)
