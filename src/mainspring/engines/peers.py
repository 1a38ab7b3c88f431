"""What the processes of a run tell of themselves while it lasts, so that each can say of the others what became of them.

Each writes a line about itself into the store where they met, once a second, over a connection of its own. Nobody reads
these lines until something has gone wrong.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import distributed as dist

_BEAT_S = 1.0
_SILENT_S = 2.5 * _BEAT_S
"""Whoever has written nothing for so long is taken for dead, or cut off."""

_PATIENCE_S = 3 * _BEAT_S + _SILENT_S
"""How long the store may take to answer. Where the network is cut, it would take for ever."""

_NAMED = 8
"""Ranks that a message names at most."""

_beats = itertools.count()


class Line(NamedTuple):
    """What a process has told of itself.

    Attributes:
        beat: Another one with each line.
        how: "in" a phase; it "lost" the others in one; it "left" with an error; or it has "ended" what it did.
        what: The phase, the error, or what it did.
    """

    beat: str
    how: str
    what: str


class Peers:
    """The lines of this process and of the others.

    Args:
        rank: This process.
        world_size: Number of processes.
        phase: What this process is doing now; asked from another thread.
    """

    def __init__(self, rank: int, world_size: int, phase: Callable[[], str]) -> None:
        self.rank = rank
        self.world_size = world_size
        self._phase = phase
        self._store: Any = None
        self._last: tuple[str, str] | None = None  # what is told in the end, and from then on
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Tell of this process from now on."""
        self._store = self._store or _connection()
        if self._store is None:
            return
        self._last = None
        self._wake.clear()
        self._thread = threading.Thread(target=self._tell, name="mainspring-peers", daemon=True)
        self._thread.start()

    def news(self) -> None:
        """Tell at once what this process is doing now."""
        self._wake.set()

    def end(self, how: str, what: str) -> None:
        """Tell how it ended, and nothing more. Waits for no store that does not answer."""
        self._last = how, what
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_BEAT_S)

    def _tell(self) -> None:
        try:
            while self._last is None:
                self._write("in", self._phase())
                self._wake.wait(_BEAT_S)
                self._wake.clear()
            self._write(*self._last)
        except RuntimeError:  # the store has ended, or cannot be reached: whoever asks is told so
            return

    def _write(self, how: str, what: str) -> None:
        beat = f"{time.time_ns()}.{next(_beats)}"
        self._store.set(_key(self.rank), json.dumps([beat, how, what[:300]]))

    def account(self) -> str:
        """What became of the others, in words. Takes some seconds, and no more."""
        if self._store is None:
            return "nothing is known of the others"
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(self._observed()), daemon=True)
        thread.start()
        thread.join(_PATIENCE_S)
        return found[0] if found else "the store where the processes met does not answer: this machine may be cut off"

    def _observed(self) -> str:
        try:
            before = self._lines()
            if not any(line is not None and line.how == "left" for line in before.values()):
                time.sleep(_SILENT_S)
            return _in_words(before, self._lines())
        except RuntimeError as error:
            return f"the store where the processes met has ended or cannot be reached ({_first_line(error)})"

    def _lines(self) -> dict[int, Line | None]:
        """The last line of every other rank; None of one that has never written any."""
        store, lines = self._store, {}
        for rank in range(self.world_size):
            if rank != self.rank:
                known = store.check([_key(rank)])
                lines[rank] = Line(*json.loads(store.get(_key(rank)))) if known else None
        return lines


def _in_words(before: dict[int, Line | None], after: dict[int, Line | None]) -> str:
    """What two readings, some seconds apart, tell of the others; who caused the trouble comes first."""
    causes, victims, here = [], [], []
    for rank, line in after.items():
        if line is None:
            causes.append(f"rank {rank} has never been heard of")
        elif line.how == "left":
            causes.append(f"rank {rank} left with {line.what}")
        elif line.how == "ended":
            causes.append(f"rank {rank} has ended {line.what}")
        elif line.how == "lost":
            victims.append(f"rank {rank} lost the others, too, in {line.what}")
        elif line == before[rank]:
            causes.append(f"rank {rank} is not heard of any more (the last time it was in {line.what})")
        else:
            here.append(f"rank {rank} is in {line.what}")
    return _listed(causes or victims + here)


def _listed(sentences: list[str]) -> str:
    more = len(sentences) - _NAMED
    return "; ".join([*sentences[:_NAMED], *([f"and so on for {more} more"] if more > 0 else [])])


_torch: Any = dist
"""torch exports its stores without saying so to type checkers."""


def _connection() -> Any:
    """A connection of its own to the store where the processes met; None where that is no server."""
    store: Any = _torch.distributed_c10d._get_default_store()
    if not hasattr(store, "clone") or not any(isinstance(part, _torch.TCPStore) for part in _layers(store)):
        return None
    try:
        return store.clone()
    except RuntimeError:
        return None


def _layers(store: Any) -> Iterable[Any]:
    while isinstance(store, _torch.PrefixStore):
        store = store.underlying_store
    yield store


def _key(rank: int) -> str:
    return f"mainspring/rank/{rank}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
