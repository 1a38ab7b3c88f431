from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.checkpoint.disk import as_os_errors, files_below, fsync, fsync_folders, in_threads


def test_files_are_found_in_all_folders_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "inside" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("inside/b", "inside/a", "inside/deep/c", "elsewhere/d"):
        (tmp_path / name).write_text("")
    (tmp_path / "inside" / "file link").symlink_to("a")
    (tmp_path / "inside" / "folder link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "inside" / "pipe")
    found = files_below(tmp_path / "inside")
    assert [path.relative_to(tmp_path / "inside").as_posix() for path in found] == ["a", "b", "deep/c"]


@pytest.mark.parametrize("look", [files_below, fsync_folders])
def test_a_folder_that_cannot_be_listed_is_no_empty_folder(tmp_path: Path, look: Callable[[Path], object]) -> None:
    with pytest.raises(FileNotFoundError):
        look(tmp_path / "nowhere")


def test_a_file_system_without_a_flush_of_folders_is_good_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "fsync", refused)
    fsync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        fsync(tmp_path / "file")


def test_a_folder_on_a_failing_disk_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        fsync(tmp_path)


def test_jobs_run_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=60)
    in_threads([meeting.wait, meeting.wait])


def test_every_job_is_done_once() -> None:
    done: list[int] = []
    in_threads([lambda index=index: done.append(index) for index in range(50)])
    assert sorted(done) == list(range(50))


def test_a_failing_job_is_raised_and_ends_the_rest() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        in_threads([fail] * 4 + [lambda: done.append(1)])
    assert done == []


def chained(error: Exception, cause: Exception) -> Exception:
    error.__context__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        Exception("No space left on device (os error 28)"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
        chained(RuntimeError("unexpected pos 64 vs 0"), FULL),
        chained(RuntimeError("unexpected pos 64 vs 0"), chained(RuntimeError("unexpected pos 8 vs 0"), FULL)),
    ],
)
def test_a_full_disk_is_an_os_error_whoever_notices_it(error: Exception) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, as_os_errors():
        raise error
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), chained(ValueError("not a model"), FULL)])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, as_os_errors():
        raise error
    assert caught.value is error
