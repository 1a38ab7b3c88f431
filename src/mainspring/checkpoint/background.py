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

Of several processes each writes its own files in a thread. The threads meet before the checkpoint is put in place, once
every one has written, and afterwards, so that all processes come to know how it ended.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mainspring.checkpoint.deferral import Job, SharedJob, deferred
from mainspring.checkpoint.snapshot import HostCopies
from mainspring.checkpoint.staging import Stage
from mainspring.checkpoint.together import Channel, agreed

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

    def __init__(self, channel: Channel | None = None) -> None:
        """Make a writer.

        Args:
            channel: Between the threads of several processes, each of which has a writer and saves when the others do.
        """
        self._channel = channel
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

    @contextmanager
    def joined(self, folder: str | os.PathLike[str]) -> Iterator[None]:
        """`staged` for a process whose files go into another's stage; that one puts them in place.

        Args:
            folder: The final place.
        """
        began = time.perf_counter()
        self._wait()
        self._copies.recycle()
        with deferred(self._copies.copy) as jobs:
            yield
        self._begin(_Save(Path(folder), jobs, None, self._channel, began))

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
        self._begin(_Save(stage.target, jobs, _Commit(stage, commit), self._channel, began))

    def _begin(self, save: _Save) -> None:
        self._running = save
        try:
            save.start()
        except BaseException as error:
            if save.withdraw():
                self._running = None
                save.give_up(error)
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


@dataclass(frozen=True)
class _Commit:
    """The end of a save, on the process whose stage it is."""

    stage: Stage
    put: Callable[[Stage], object]

    def __call__(self) -> None:
        self.put(self.stage)


class _Save:
    """One save, and its thread."""

    def __init__(
        self, folder: Path, jobs: Sequence[Job], commit: _Commit | None, channel: Channel | None, began: float
    ) -> None:
        self.finished: Finished | None = None
        self._folder = folder
        self._jobs = jobs
        self._commit = commit
        self._channel = channel
        self._began = began
        self._blocking_s = 0.0
        self._claim = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"save {folder.name}", daemon=False)

    def start(self) -> None:
        self._blocking_s = time.perf_counter() - self._began
        self._thread.start()

    def withdraw(self) -> bool:
        """Keep the thread from beginning; False: it has begun, and the save is its business."""
        return self._claim.acquire(blocking=False)

    def give_up(self, error: BaseException) -> None:
        """Instead of the thread: write nothing, and tell the other processes, which wait for this one."""
        self._write(error)

    def result(self) -> Finished:
        self._thread.join()
        assert self.finished is not None
        return self.finished

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        error = self._write(None)
        total_s = time.perf_counter() - self._began
        if error is not None and not threading.main_thread().is_alive():
            logger.error("%s was not written: %r", self._folder, error)  # the program has ended: nobody will ask
        self.finished = Finished(self._folder, self._blocking_s, total_s, error)

    def _write(self, error: BaseException | None) -> BaseException | None:
        """Do the jobs and put the checkpoint in place, or remove the stage; why it is not in place comes back."""
        own = [job for job in self._jobs if not isinstance(job, SharedJob)]
        shared = [job for job in self._jobs if isinstance(job, SharedJob)]
        group = None if self._channel is None else self._channel.group
        try:
            error = _first_error([] if error else own) or error
            for job in shared:  # also after an error: the others wait in them
                error = _first_error([partial(job, group)]) or error
            error = self._agreed(error)
            if self._commit is not None and error is None:
                error = _first_error([self._commit])
            error = self._agreed(error)
        except BaseException as problem:  # noqa: BLE001 (another process is gone; handed to the thread that trains)
            error = error or problem
        if self._commit is not None and error is not None:
            self._commit.stage.drop()
        return error

    def _agreed(self, error: BaseException | None) -> BaseException | None:
        return error if self._channel is None else agreed(error, self._channel.every)


def _first_error(jobs: Sequence[Job]) -> BaseException | None:
    try:
        for job in jobs:
            job()
    except BaseException as error:  # noqa: BLE001 (handed to the thread that trains)
        return error
    return None
