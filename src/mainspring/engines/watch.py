"""What this process is doing together with others, and how it ends when it loses them: never silently.

torch's collectives fail by themselves when a peer dies or `ddp_timeout` has passed. What they raise names neither rank
nor phase; `Watch.session` makes a `ProcessesError` of it that does. And some waits of torch never end: a process that is
cut off from the store (where groups are formed) is not told that its request got lost. So a second thread looks at how
long this process has been waiting for others, and ends it when that is longer than torch itself would allow. Time that is
spent in anything else, such as a script's own code, is not looked at.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

from mainspring.engines.peers import Peers
from mainspring.errors import EXIT_LOST, ProcessesError, between_processes

Phase = str | Callable[[], str]
"""What a process is doing, or a function that says so; it is called when something has gone wrong, and once a second."""

_STDERR = 2


class Wait(NamedTuple):
    """A wait for other processes: what for, and since when."""

    what: str
    since: float


class Watch:
    """Phases, waits and sessions of one process among several.

    Args:
        rank: This process.
        world_size: Number of processes.
        limit_s: Seconds after which torch gives up a collective.
    """

    def __init__(self, rank: int, world_size: int, limit_s: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self.limit_s = limit_s
        self.grace_s = min(60.0, max(5.0, 0.1 * limit_s))  # so that torch's own error comes first, where one comes
        self._phases: list[Phase] = ["start"]
        self._wait: Wait | None = None
        self._peers = Peers(rank, world_size, self.phase)
        self._is_in_session = False

    def phase(self) -> str:
        """What this process is doing."""
        phase = self._phases[-1]
        return phase if isinstance(phase, str) else phase()

    def place(self) -> str:
        """The phase, and what is being waited for in it."""
        wait = self._wait
        return self.phase() if wait is None else f"{self.phase()}, waiting for {wait.what}"

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """The body is a phase of its own."""
        self._phases.append(phase)
        self._peers.news()
        try:
            yield
        except BaseException as error:
            self._mark(error)
            raise
        finally:
            self._phases.pop()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """The body waits for other processes, and does nothing else."""
        former, self._wait = self._wait, Wait(what, time.monotonic())
        try:
            yield
        except BaseException as error:
            self._mark(error)
            raise
        finally:
            self._wait = former

    def _mark(self, error: BaseException) -> None:
        """Note on an error where it came from, before the phase is left."""
        vars(error).setdefault("_place", (self.phase(), self.place()))

    @contextlib.contextmanager
    def session(self, name: str) -> Iterator[None]:
        """The body works together with the other processes. A session inside a session is part of it.

        Raises:
            ProcessesError: The others were lost.
        """
        if self._is_in_session:
            yield
            return
        ended = threading.Event()
        self._is_in_session = True
        threading.Thread(target=self._look_after, args=(ended,), name="mainspring-watch", daemon=True).start()
        self._peers.begin()
        try:
            yield
        except BaseException as error:
            if not any(map(between_processes, _chain(error))):
                self._peers.end("left", f"{type(error).__name__}: {error} (in {self._place_of(error)[0]})")
                raise
            raise self._lost(error) from error
        else:
            self._peers.end("ended", name)
        finally:
            self._is_in_session = False
            ended.set()

    def _place_of(self, error: BaseException) -> tuple[str, str]:
        """Phase and place where it began: one loss leads to others, as when what was under way is finished."""
        marked: list[tuple[str, str]] = [vars(one)["_place"] for one in _chain(error) if "_place" in vars(one)]
        return marked[-1] if marked else (self.phase(), self.place())

    def _lost(self, error: BaseException) -> ProcessesError:
        phase, place = self._place_of(error)
        self._peers.end("lost", phase)  # first: the others, who ask at the same time, are to hear of this phase
        message = f"{self._complaint(place)}: {self._peers.account()}. What torch says: {error}"
        return ProcessesError(message, phase)

    def _complaint(self, place: str) -> str:
        return f"rank {self.rank} of {self.world_size} lost the other processes in {place} (ddp_timeout={self.limit_s:g} s)"

    def _look_after(self, ended: threading.Event) -> None:
        allowed = self.limit_s + self.grace_s
        while not ended.wait(min(1.0, self.limit_s / 4)):
            wait = self._wait
            if wait is not None and time.monotonic() - wait.since > allowed:
                self._end_process(wait)

    def _end_process(self, wait: Wait) -> None:
        """Python cannot interrupt a wait inside torch: say where it is, and end the process."""
        complaint, waited_s = self._complaint(self.place()), time.monotonic() - wait.since
        lost = f"{complaint}, and torch still waits after {waited_s:.0f} s: {self._peers.account()}"
        if self._wait is not wait:
            return  # it came to its end while the others were asked about
        os.write(_STDERR, f"mainspring: {lost}. The process ends with status {EXIT_LOST}; its threads:\n".encode())
        faulthandler.dump_traceback(_STDERR)
        os._exit(EXIT_LOST)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came after."""
    while error is not None:
        yield error
        error = error.__context__


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def waits_for(what: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Mark a method of an engine as one that waits for other processes, and does nothing else."""

    def mark(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(method)
        def marked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            engine: Any = args[0]
            with engine._watch.waiting(what):
                return method(*args, **kwargs)

        return marked

    return mark
