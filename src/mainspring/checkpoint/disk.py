"""Files below a folder, forcing them to the disk, and what goes wrong on the way."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# What the system answers where a file itself is why it cannot be read: gone, no file, or with positions that it has not.
_ABOUT_THE_FILE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EOVERFLOW}
)
# What file systems answer that cannot flush a folder at all (some network and FUSE ones); they have no more to give.
_NO_FOLDER_FLUSH = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_OS_ERROR_TEXT = re.compile(r"\(os error (\d+)\)")
_MAX_THREADS = 4


def files_below(folder: Path) -> list[Path]:
    """Return every regular file in `folder` and its sub-folders, sorted; symbolic links are no files, nor followed."""
    return sorted(
        path
        for root, _, names in os.walk(folder, onerror=_raise)
        for path in (Path(root, name) for name in names)
        if path.is_file() and not path.is_symlink()
    )


def tells_nothing(error: BaseException) -> bool:
    """Whether a file could not be read for a reason outside it: the disk, the network, permissions.

    Such an error says nothing of whether the file is what was written; reading it again may succeed.
    """
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _ABOUT_THE_FILE


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the name of the file into the `OSError` that reading it raises: the system gives it for opening alone."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def fsync(path: Path) -> None:
    """Force one file, or the names in one folder, to the disk."""
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:  # Windows cannot open a folder, and its renames are journalled
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in _NO_FOLDER_FLUSH):
            raise
    finally:
        os.close(descriptor)


def fsync_folders(folder: Path) -> None:
    """Force the names in `folder` and its sub-folders to the disk, the inner ones first."""
    for root, _, _ in os.walk(folder, topdown=False, onerror=_raise):
        fsync(Path(root))


def in_threads(jobs: Sequence[Callable[[], object]]) -> None:
    """Run jobs that wait for the disk in a few threads, each begun in the order given.

    Plain threads and not an executor, which takes no work any more once the interpreter ends; a save that was begun before
    must still be finished then.

    Raises:
        BaseException: What the first failing job raised; jobs that had not begun are left out.
    """
    waiting = iter(jobs)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            try:
                job()
            except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(min(_MAX_THREADS, len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as interruption:
        errors.append(interruption)  # ends the threads after the job they are at
        raise
    if errors:
        raise errors[0]


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Turn what compiled writers raise when the system refuses a write into the `OSError` that it is; also a decorator.

    safetensors and tokenizers put the error's number into the text of an exception of their own; torch hides the one that
    its file raised behind a `RuntimeError` about positions.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        cause = _hidden_os_error(error)
        if cause is None:
            raise
        raise cause from error


def _hidden_os_error(error: Exception) -> OSError | None:
    if found := _OS_ERROR_TEXT.search(str(error)):
        number = int(found[1])
        return OSError(number, os.strerror(number))
    before = error.__context__ if isinstance(error, RuntimeError) else None
    while before is not None and not isinstance(before, OSError):
        before = before.__context__
    return OSError(before.errno, before.strerror) if before else None


def _raise(error: OSError) -> None:
    raise error
