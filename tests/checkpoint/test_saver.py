"""Saves of several processes, played by threads: what one of them meets with, all of them know."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mainspring.checkpoint.manifest import Facts
from mainspring.checkpoint.saver import Saver

FACTS = Facts(run_id="r", step=1, samples=8)


class Threads:
    """What `Saver` asks of an engine, between threads."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=30)
        self._said: dict[int, Any] = {}

    def _all(self, rank: int, value: Any) -> list[Any]:
        self._said[rank] = value
        self._barrier.wait()
        said = [self._said[other] for other in sorted(self._said)]
        self._barrier.wait()
        return said

    def of(self, rank: int) -> Any:
        between = self

        class Process:
            def share(self, value: Any) -> Any:
                return between._all(rank, value)[0]

            def any(self, flag: bool) -> bool:
                return any(between._all(rank, flag))

        return Process()


def outcomes(folder: Path, fills: list[Callable[[str], object]], **options: Any) -> list[Any]:
    """What each process is left with after one save: its saver, or the exception that ended it."""
    threads = Threads(len(fills))

    def process(rank: int) -> Any:
        saver = Saver(threads.of(rank), **{"writes": rank == 0, "raises": False, "in_background": False, **options})
        try:
            saver.save(folder, FACTS, fills[rank], lambda: 0)
        except Exception as error:  # noqa: BLE001 (looked at by the test)
            return error
        return saver

    with ThreadPoolExecutor(len(fills)) as pool:
        return list(pool.map(process, range(len(fills))))


def writes(name: str) -> Callable[[str], object]:
    return lambda stage: (Path(stage) / name).write_text("text")


def fails(error: Exception) -> Callable[[str], object]:
    def fill(stage: str) -> None:
        raise error

    return fill


def test_every_process_writes_into_one_checkpoint(tmp_path: Path) -> None:
    savers = outcomes(tmp_path / "checkpoint-1", [writes("a"), writes("b"), writes("c")])
    assert [saver.failures for saver in savers] == [0, 0, 0]
    assert {path.name for path in (tmp_path / "checkpoint-1").iterdir()} == {"a", "b", "c", "manifest.json"}


@pytest.mark.parametrize("failing", [0, 1])
def test_a_disk_that_refuses_one_process_is_everybodys_failed_save(failing: int, tmp_path: Path) -> None:
    fills = [writes("a"), writes("b")]
    fills[failing] = fails(OSError("refused"))
    savers = outcomes(tmp_path / "checkpoint-1", fills)
    assert [(saver.failed, saver.failures) for saver in savers] == [(True, 1), (True, 1)]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_the_program_ends_every_process(failing: int, tmp_path: Path) -> None:
    fills = [writes("a"), writes("b")]
    fills[failing] = fails(KeyError("a name"))
    ended = outcomes(tmp_path / "checkpoint-1", fills)
    assert isinstance(ended[failing], KeyError)
    assert isinstance(ended[1 - failing], RuntimeError)
    assert "another process" in str(ended[1 - failing])
    assert not list(tmp_path.iterdir())


def background() -> Saver:
    return Saver(Threads(1).of(0), writes=True, raises=True, in_background=True)


def test_nothing_is_put_in_place_while_it_is_held(tmp_path: Path) -> None:
    saver, folder = background(), tmp_path / "checkpoint-1"
    with saver.held():
        saver.save(folder, FACTS, writes("own"), lambda: 0)
        folder.mkdir()
        (folder / "added").write_text("by somebody else, after the save was begun")
        assert not (folder / "own").exists()
    assert [finished.error for finished in saver.finished(wait=True)] == [None]
    assert {path.name for path in folder.iterdir()} == {"own", "added", "manifest.json"}


def test_a_second_save_lets_the_first_go(tmp_path: Path) -> None:
    saver = background()
    with saver.held():
        saver.save(tmp_path / "checkpoint-1", FACTS, writes("a"), lambda: 0)
        saver.save(tmp_path / "checkpoint-2", FACTS, writes("a"), lambda: 0)
        assert (tmp_path / "checkpoint-1").is_dir()
        assert not (tmp_path / "checkpoint-2").exists()
    assert len(saver.finished(wait=True)) == 2


def test_a_save_that_nobody_holds_needs_no_release(tmp_path: Path) -> None:
    saver = background()
    saver.save(tmp_path / "checkpoint-1", FACTS, writes("a"), lambda: 0)
    assert [finished.error for finished in saver.close()] == [None]
