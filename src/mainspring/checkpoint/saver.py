"""The saves of one run: all processes together, failures survived and counted, in the foreground or the background."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from mainspring.checkpoint.background import BackgroundWriter, Finished
from mainspring.checkpoint.manifest import Facts
from mainspring.checkpoint.space import check_space
from mainspring.checkpoint.staging import Stage, staged
from mainspring.checkpoint.together import Disk, FailedElsewhereError, OneDisk, Processes, agreed

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]


class Saver:
    """Writes the checkpoints of one run.

    Args:
        processes: Those of the run.
        writes: Whether this process makes the folder and puts it in place; every one writes its own files into it.
        disk: Which processes share a folder, and who makes it; default: all, and `writes` says who.
        raises: Whether a save that the system refuses ends the run, rather than being told and counted.
        in_background: Whether files are written while training goes on.

    Attributes:
        in_background: Whether `save` returns before the checkpoint is in place.
        failures: Saves that failed.
        failed: Whether the last one that was begun failed at once.
        slowest_s: Longest time that one has taken, in seconds.
    """

    def __init__(
        self, processes: Processes, *, writes: bool, raises: bool, in_background: bool, disk: Disk | None = None
    ) -> None:
        self._processes = processes
        self._disk = OneDisk(processes, writes) if disk is None else disk
        self._raises = raises
        self.in_background = in_background
        self._background: BackgroundWriter | None = None
        self._holds = False
        self._may_commit = threading.Event()
        self.failures = 0
        self.failed = False
        self.slowest_s = 0.0
        self._reported: list[Finished] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put nothing in place before the body ends: files that it writes to the place itself belong to the checkpoint."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False
            self._may_commit.set()

    def save(
        self, folder: StrPath, facts: Facts, fill: Callable[[str], object], needed_bytes: Callable[[], int]
    ) -> None:
        """Write one checkpoint, whole or not at all; every process calls it.

        Args:
            folder: Its place.
            facts: What its manifest says of it.
            fill: Writes this process's files into the folder it is given.
            needed_bytes: Estimates its size; asked on the process that writes.

        Raises:
            OSError: The system refused, where that ends the run. Older checkpoints are untouched.
            Exception: What `fill` raised, on its process; the others raise a `RuntimeError`.
        """
        began = time.perf_counter()
        self._may_commit.set()  # for the save before this one
        if self.in_background and self._background is None:  # here, since all processes are
            self._background = BackgroundWriter(self._processes.channel())
        own = self._attempt(folder, facts, fill, needed_bytes)
        if self._processes.any(own is not None and not isinstance(own, OSError)):
            if own is not None and not isinstance(own, OSError):
                raise own
            raise RuntimeError(f"{folder} was not saved: another process failed, and says why")
        error = agreed(own, self._processes.every)
        self.failed = error is not None
        if error is not None or not self.in_background:
            seconds = time.perf_counter() - began
            self.report(Finished(Path(folder), seconds, seconds, error))

    def finished(self, wait: bool = False) -> list[Finished]:
        """The saves of the background that have come to their end since the last call; not yet reported."""
        if self._background is None:
            return []
        return self._background.drain() if wait else self._background.poll()

    def report(self, finished: Finished) -> None:
        """Tell how a save ended, and count it.

        Raises:
            OSError: It failed, and that ends the run.
        """
        self.slowest_s = max(self.slowest_s, finished.total_s)
        if finished.error is None:
            told = "saved %s in %.2f s, %.2f s of which training waited"
            logger.info(told, finished.folder, finished.total_s, finished.blocking_s)
            self._reported.append(finished)
            return
        self.failures += 1
        if self._raises or not isinstance(finished.error, OSError):
            raise finished.error
        logger.error(
            "%s COULD NOT BE SAVED: %s. Older checkpoints are untouched, and the run goes on; the next save is tried as "
            "planned (failed so far: %d)",
            finished.folder,
            finished.error,
            self.failures,
        )

    def take_times(self) -> dict[str, float]:
        """For the logs: seconds of the saves since the last call, from beginning to end, and those that training waited."""
        saves, self._reported = self._reported, []
        if not saves:
            return {}
        return {
            "save_runtime": sum(save.total_s for save in saves),
            "save_blocking_runtime": sum(save.blocking_s for save in saves),
        }

    def close(self) -> list[Finished]:
        """Wait for what is in flight, give its memory back, and return what `finished` would."""
        return [] if self._background is None else self._background.close()

    def _attempt(
        self, folder: StrPath, facts: Facts, fill: Callable[[str], object], needed_bytes: Callable[[], int]
    ) -> Exception | None:
        try:
            with self._place(folder, facts, needed_bytes) as path:
                self._fill(fill, path)
        except Exception as error:  # noqa: BLE001 (raised by `save`, once all processes know)
            return error
        return None

    @contextmanager
    def _place(self, folder: StrPath, facts: Facts, needed_bytes: Callable[[], int]) -> Iterator[str]:
        """The stage of this process's disk. All processes have one, or none begins to fill it: they meet while they do."""
        path, error = None, None
        with ExitStack() as until_filled:
            if self._disk.writes:
                try:
                    check_space(folder, needed_bytes())
                    path = os.fspath(until_filled.enter_context(self._stage(folder, facts)))
                except Exception as problem:  # noqa: BLE001 (raised below)
                    error = problem
            path = self._disk.share(path)
            if self._processes.any(path is None):
                raise error or FailedElsewhereError(errno.EIO, "another process could not make its folder", folder)
            assert path is not None
            if self._background is not None and not self._disk.writes:
                until_filled.enter_context(self._background.joined(folder))
            yield path

    def _stage(self, folder: StrPath, facts: Facts) -> AbstractContextManager[Path]:
        if self._background is None:
            return staged(folder, facts)
        self._may_commit = may_commit = threading.Event()
        if not self._holds:
            may_commit.set()

        def commit(stage: Stage) -> None:
            may_commit.wait()
            stage.commit(facts)

        return self._background.staged(folder, commit)

    def _fill(self, fill: Callable[[str], object], path: str) -> None:
        """Fill the stage, and fail on every process where any did."""
        error: Exception | None = None
        try:
            fill(path)
        except Exception as problem:  # noqa: BLE001 (raised below)
            error = problem
        if self._processes.any(error is not None):
            raise error or FailedElsewhereError(errno.EIO, "another process could not write its files", path)
