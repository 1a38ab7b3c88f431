"""One run per output folder: a lock that dies with its process.

    with locked("out"):
        ...                     # a second run in "out" is refused meanwhile, here or in any other process

It is a record lock of the system, which ends with the process that took it, however that ends. Workers that were forked do
not inherit it, as they would `flock`'s: those can outlive a run that was killed. The file's content only says who holds
it. A process loses its record locks when any part of it closes the file, so a holder never opens it again.

Windows has no such locks. There the file itself is the lock, and one whose process is gone does not count.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_NAME = ".mainspring.lock"

_CONTENDED = frozenset({errno.EACCES, errno.EAGAIN})
# How long a lock may be held by nobody known: its holder writes who it is right after it has taken it.
_PATIENCE_S = 1.0


@dataclass(frozen=True)
class _Hold:
    """A folder that a run of this process is in.

    Attributes:
        pid: The process: a forked child finds its parent's entry, and has no lock.
        release: Gives the lock back; None: none could be had.
    """

    pid: int
    release: Callable[[], None] | None


_held: dict[str, _Hold] = {}
_guard = threading.Lock()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        pid: The process.
        host: The name of its machine.
        since: When it took the lock: ISO format, UTC.
    """

    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    since: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_alive(self) -> bool:
        """Whether the process still runs, as far as this machine can tell."""
        import psutil

        if self.host != socket.gethostname():
            return True
        try:
            process = psutil.Process(self.pid)
            # One that was born later has only the same number.
            younger = process.create_time() > datetime.fromisoformat(self.since).timestamp() + 1
            return not younger and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


class _TakenError(Exception):
    """Another process has the lock."""


@contextmanager
def locked(output_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Keep every other run out of an output folder for as long as the body runs.

    Where no lock can be had (a folder that cannot be written to, a file system without locks) one warning says so, and the
    body runs all the same.

    Args:
        output_dir: The folder; created when it is not there.

    Raises:
        RuntimeError: Another run is in it; the message names its process, its host and since when.
    """
    folder = os.path.realpath(output_dir)
    with _guard:
        if _own_hold(folder) is not None:
            raise RuntimeError(_refusal(folder, f"another run in this process ({os.getpid()})"))
        hold = _held[folder] = _Hold(os.getpid(), _acquire(Path(folder)))
    try:
        yield
    finally:
        if _own_hold(folder) is hold:  # in a child that was forked by the body there is nothing to give back
            del _held[folder]
            if hold.release is not None:
                hold.release()


def holds(output_dir: str | os.PathLike[str]) -> bool:
    """Whether this process is inside `locked`, and has the lock: then nobody else is at work in the folder."""
    hold = _own_hold(os.path.realpath(output_dir))
    return hold is not None and hold.release is not None


def _own_hold(folder: str) -> _Hold | None:
    hold = _held.get(folder)
    return hold if hold is not None and hold.pid == os.getpid() else None


def _acquire(folder: Path) -> Callable[[], None] | None:
    """Take the lock; what is returned gives it back. None: there are no locks here."""
    take = _take_file if os.name == "nt" else _take_record
    path = folder / LOCK_NAME
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return take(path)
        except _TakenError:
            holder = _read(path)
        except OSError as error:
            _warn(folder, str(error))
            return None
        if holder is not None and holder.is_alive():
            raise RuntimeError(_refusal(folder, str(holder)))
        if time.monotonic() > deadline:
            raise RuntimeError(_refusal(folder, "a process that does not say who it is"))
        time.sleep(0.01)  # it is about to write its name, or has just given the lock back


def _take_record(path: Path) -> Callable[[], None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock_record(descriptor)
        if not _is_at(descriptor, path):  # its former holder removed it between our two calls
            raise _TakenError
        os.truncate(descriptor, 0)
        os.write(descriptor, _text(Holder()))
    except BaseException:
        os.close(descriptor)
        raise
    return functools.partial(_give_back_record, descriptor, path)


def _lock_record(descriptor: int) -> None:
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise (_TakenError() if error.errno in _CONTENDED else error) from None


def _give_back_record(descriptor: int, path: Path) -> None:
    with suppress(OSError, _TakenError):  # the folder may be gone
        _lock_record(descriptor)  # or somebody else's, if a careless reader in this process lost ours
        if _is_at(descriptor, path):
            path.unlink()
    os.close(descriptor)


def _take_file(path: Path) -> Callable[[], None]:
    mine = Holder()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        former = _read(path)
        if former is not None and not former.is_alive():
            path.unlink(missing_ok=True)
        raise _TakenError from None  # the caller tries again
    try:
        os.write(descriptor, _text(mine))
    finally:
        os.close(descriptor)
    return functools.partial(_give_back_file, path, mine)


def _give_back_file(path: Path, mine: Holder) -> None:
    with suppress(OSError):
        if _read(path) == mine:
            path.unlink()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> Holder | None:
    """Who a lock says that holds it; None: nobody yet."""
    try:
        holder = Holder(**json.loads(path.read_bytes()))
        datetime.fromisoformat(holder.since)
        return holder
    except (OSError, ValueError, TypeError):
        return None


def _text(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _refusal(folder: str | os.PathLike[str], holder: str) -> str:
    return (
        f"output_dir={os.fspath(folder)!r} is in use by {holder}: two runs would mix their checkpoints; wait for it or "
        f"stop it, or choose another output_dir"
    )


@functools.cache
def _warn(folder: Path, why: str) -> None:
    logger.warning("%s could not be locked (%s): nothing keeps a second run out of it", folder, why)
