"""Saves of several processes, played by threads: what one of them meets with, all of them know."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring.checkpoint import DiskPerMachine, Finished, in_any_case, load_torch, save_torch, verify
from mainspring.checkpoint.manifest import Facts, read_manifest
from mainspring.checkpoint.saver import Saver

FACTS = Facts(run_id="r", step=1, samples=8)


class Threads:
    """What `Saver` asks of an engine, between threads."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=30)
        self._said: dict[int, Any] = {}
        self._side: Threads | None = None
        self._lock = threading.Lock()
        self.size = size

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

            def every(self, value: Any) -> list[Any]:
                return between._all(rank, value)

            def channel(self) -> Any:
                return None if between.size == 1 else between.side().of(rank)

        process: Any = Process()
        process.rank, process.group = rank, None
        return process

    def side(self) -> Threads:
        """Between other threads of the same processes."""
        with self._lock:
            self._side = self._side or Threads(self.size)
        return self._side


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


def machines(
    tmp_path: Path, fills: list[Callable[[str], object]], places: list[Path], **options: Any
) -> tuple[list[Any], list[Any]]:
    """Outcomes and finished saves of processes on machines of two, each machine with a folder of its own."""
    threads = Threads(len(fills))

    def process(rank: int) -> Any:
        leads = rank % 2 == 0
        disk = DiskPerMachine(threads.of(rank), leads)
        options_of = {"raises": False, "in_background": False, **options}
        saver = Saver(threads.of(rank), writes=leads, disk=disk, **options_of)
        saver.save(places[rank // 2], FACTS, fills[rank], lambda: 0)
        return saver, saver.finished(wait=True)

    with ThreadPoolExecutor(len(fills)) as pool:
        pairs = list(pool.map(process, range(len(fills))))
    return [saver for saver, _ in pairs], [finished for _, finished in pairs]


@pytest.mark.parametrize("in_background", [False, True], ids=["foreground", "background"])
def test_each_machine_has_a_whole_checkpoint(in_background: bool, tmp_path: Path) -> None:
    places = [tmp_path / "a" / "checkpoint-1", tmp_path / "b" / "checkpoint-1"]
    fills = [writes(f"of-{rank}") for rank in range(4)]
    savers, _ = machines(tmp_path, fills, places, in_background=in_background)
    assert [saver.failures for saver in savers] == [0, 0, 0, 0]
    for machine, place in enumerate(places):
        own = {f"of-{2 * machine}", f"of-{2 * machine + 1}"}
        assert {path.name for path in place.iterdir()} == {*own, "manifest.json"}
        assert read_manifest(place).files.keys() == own  # type: ignore[union-attr]


def test_a_machine_that_cannot_begin_keeps_all_from_it(tmp_path: Path) -> None:
    """Nobody fills a folder: the processes would wait for each other there."""
    filled: list[str] = []
    (tmp_path / "b").write_text("no folder")
    places = [tmp_path / "a" / "checkpoint-1", tmp_path / "b" / "checkpoint-1"]
    savers, _ = machines(tmp_path, [filled.append] * 4, places)
    assert [(saver.failed, saver.failures) for saver in savers] == [(True, 1)] * 4
    assert filled == []
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("in_background", [False, True], ids=["foreground", "background"])
def test_a_machine_that_cannot_finish_is_everybodys_failed_save(in_background: bool, tmp_path: Path) -> None:
    def in_the_way(stage: str) -> None:
        writes("a")(stage)
        Path(stage, "manifest.json").write_text("somebody else's")

    places = [tmp_path / "a" / "checkpoint-1", tmp_path / "b" / "checkpoint-1"]
    savers, finished = machines(
        tmp_path, [writes("a"), writes("b"), in_the_way, writes("b")], places, in_background=in_background
    )
    if in_background:
        assert [[type(one.error) for one in ended] for ended in finished] == [[FileExistsError]] * 4
    else:
        assert [(saver.failed, saver.failures) for saver in savers] == [(True, 1)] * 4
    assert not (tmp_path / "b" / "checkpoint-1").exists()


def many_in_background(folder: Path, fills: list[Callable[[str], object]]) -> list[list[Finished]]:
    """What the processes find when their background saves have ended."""
    savers = outcomes(folder, fills, in_background=True)
    with ThreadPoolExecutor(len(fills)) as pool:
        return list(pool.map(lambda saver: saver.close(), savers))


def test_several_processes_write_in_the_background(tmp_path: Path) -> None:
    """Each its own copy, which is put in place once all have written."""
    tensors = [torch.full((3,), float(rank)) for rank in range(3)]

    def fill(rank: int) -> Callable[[str], object]:
        def save(stage: str) -> None:
            save_torch({"x": tensors[rank]}, Path(stage, f"of-{rank}.pt"))
            tensors[rank].zero_()

        return save

    finished = many_in_background(tmp_path / "checkpoint-1", [fill(rank) for rank in range(3)])
    assert [[one.error for one in ended] for ended in finished] == [[None]] * 3
    assert verify(tmp_path / "checkpoint-1") == ["trainer_state.json is missing"]
    for rank in range(3):
        assert load_torch(tmp_path / "checkpoint-1" / f"of-{rank}.pt")["x"].tolist() == [rank] * 3


@pytest.mark.parametrize("failing", [0, 1])
def test_a_background_write_that_fails_is_everybodys(failing: int, tmp_path: Path) -> None:
    def fill(rank: int) -> Callable[[str], object]:
        name = "missing/state.pt" if rank == failing else f"of-{rank}.pt"
        return lambda stage: save_torch({"x": torch.ones(1)}, Path(stage, name))

    finished = many_in_background(tmp_path / "checkpoint-1", [fill(0), fill(1)])
    assert [[type(one.error) for one in ended] for ended in finished] == [[FileNotFoundError]] * 2
    assert f"process {failing}" in str(finished[1 - failing][0].error)
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_program_in_the_background_is_no_systems_error(tmp_path: Path) -> None:
    """Everywhere: some processes would count it and go on, and others end."""
    fills = [writes("a"), lambda stage: save_torch({"x": object()}, Path(stage, "state.pt"))]
    finished = many_in_background(tmp_path / "checkpoint-1", fills)
    assert [isinstance(ended[0].error, OSError) for ended in finished] == [False, False]
    assert not list(tmp_path.iterdir())


def test_steps_are_taken_in_any_case() -> None:
    """Those after a failed one, too: other processes wait in them."""
    taken: list[int] = []
    steps = [partial(taken.append, 1), lambda: 1 / 0, partial(taken.append, 2), lambda: {}["no such key"]]
    with pytest.raises(ZeroDivisionError):
        in_any_case(*steps)
    assert taken == [1, 2]


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
