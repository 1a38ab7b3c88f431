"""Saving while training goes on: the state is copied at the step, a thread writes the copy, one save at a time.

    writer = BackgroundWriter()
    with writer.staged("out/checkpoint-20") as stage:   # blocks for the copy, not for the disk
        save_model(model, stage)
        save_torch(optimizer.state_dict(), stage / "optimizer.pt")
    ...
    for save in writer.poll():                          # at each step: what has been written since, or has failed
        ...
    writer.close()                                      # waits for the last one

What is written inside `staged` by other means is written at once, into the same stage. The thread then writes the rest,
flushes all of it and puts the checkpoint in place. It is no daemon: the interpreter waits for it before it ends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mainspring.checkpoint.deferral import Job, deferred
from mainspring.checkpoint.snapshot import HostCopies
from mainspring.checkpoint.staging import Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """One save that has come to its end.

    Attributes:
        folder: The checkpoint.
        blocking_s: Seconds that it kept the training waiting, the wait for the save before it included.
        total_s: Seconds from its beginning until the checkpoint was in place, or had failed.
        error: Why there is no checkpoint; None: it is in place.
    """

    folder: Path
    blocking_s: float
    total_s: float
    error: BaseException | None = None


class BackgroundWriter:
    """Writes checkpoints in a thread, one at a time.

    To be used from one thread, the one that trains. It keeps as much host memory as the state that was written last takes,
    until `close`.
    """

    def __init__(self) -> None:
        self._copies = HostCopies()
        self._running: _Save | None = None
        self._finished: list[Finished] = []

    @contextmanager
    def staged(
        self, folder: str | os.PathLike[str], commit: Callable[[Stage], object] = Stage.commit
    ) -> Iterator[Path]:
        """Write a checkpoint that appears whole, or not at all, some time after the body.

        Waits for the save before it; the copies are in the same memory.

        Args:
            folder: The final place; its parents are created.
            commit: Puts the stage in place, from the thread; `lambda stage: stage.commit(facts)` with a manifest.

        Yields:
            The empty stage. `save_torch` and `save_model` take a copy of what they are given; their files are there when
            the save is finished.

        Raises:
            BaseException: Whatever the body raised, after the stage was removed.
        """
        began = time.perf_counter()
        self._wait()
        self._copies.recycle()
        stage = Stage.open(folder)
        try:
            with deferred(self._copies.copy) as jobs:
                yield stage.path
        except BaseException:
            stage.drop()
            raise
        self.submit(stage, jobs, commit, began)

    def submit(
        self,
        stage: Stage,
        jobs: Sequence[Job],
        commit: Callable[[Stage], object] = Stage.commit,
        began: float | None = None,
    ) -> None:
        """Have a stage finished in the background, after the save before it; what `staged` does at its end.

        Args:
            stage: Where the jobs write; dropped if one of them, or the commit, fails.
            jobs: Write the files.
            commit: Puts the stage in place, from the thread.
            began: When the save began, by `time.perf_counter`; default: now.
        """
        began = time.perf_counter() if began is None else began
        try:
            self._wait()
        except BaseException:
            stage.drop()
            raise
        self._running = _Save(stage, jobs, commit, began)
        try:
            self._running.start()
        except BaseException:
            if self._running.withdraw():
                self._running = None
                stage.drop()
            raise

    def poll(self) -> list[Finished]:
        """Return the saves that have finished since the last call, failed ones among them; never waits."""
        if self._running is not None and self._running.finished is not None:
            self._wait()
        finished, self._finished = self._finished, []
        return finished

    def drain(self) -> list[Finished]:
        """Wait for the save in flight, and return what `poll` would: before checkpoints are read, and at the end."""
        self._wait()
        return self.poll()

    def close(self) -> list[Finished]:
        """`drain`, and give the memory of the copies back. The writer can be used again."""
        finished = self.drain()
        self._copies.release()
        return finished

    def _wait(self) -> None:
        if self._running is not None:
            self._finished.append(self._running.result())
            self._running = None


class _Save:
    """One save, and its thread."""

    def __init__(self, stage: Stage, jobs: Sequence[Job], commit: Callable[[Stage], object], began: float) -> None:
        self.finished: Finished | None = None
        self._stage = stage
        self._jobs = jobs
        self._commit = commit
        self._began = began
        self._blocking_s = 0.0
        self._claim = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"save {stage.target.name}", daemon=False)

    def start(self) -> None:
        self._blocking_s = time.perf_counter() - self._began
        self._thread.start()

    def withdraw(self) -> bool:
        """Keep the thread from beginning; False: it has begun, and the stage is its business."""
        return self._claim.acquire(blocking=False)

    def result(self) -> Finished:
        self._thread.join()
        assert self.finished is not None
        return self.finished

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        error = self._write()
        total_s = time.perf_counter() - self._began
        if error is not None and not threading.main_thread().is_alive():
            logger.error("%s was not written: %r", self._stage.target, error)  # the program has ended: nobody will ask
        self.finished = Finished(self._stage.target, self._blocking_s, total_s, error)

    def _write(self) -> BaseException | None:
        try:
            for job in self._jobs:
                job()
            self._commit(self._stage)
        except BaseException as error:  # noqa: BLE001 (handed to the thread that trains)
            self._stage.drop()
            return error
        return None
