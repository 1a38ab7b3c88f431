"""Which checkpoint several machines go on from, each with a disk of its own; played by threads."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mainspring.checkpoint import CheckpointError, DiskPerMachine, OneDisk, resolve_together
from tests.checkpoint.test_saver import Threads
from tests.helpers.checkpoints import flip, write_small


def found_by(folders: list[Path], wanted: Any, per_machine: bool = True) -> list[Any]:
    """What each of several processes gets, or the exception; every second one leads a machine and its folder."""
    threads = Threads(2 * len(folders))

    def process(rank: int) -> Any:
        leads = rank % 2 == 0 if per_machine else rank == 0
        disk = (DiskPerMachine if per_machine else OneDisk)(threads.of(rank), leads)
        try:
            return resolve_together(wanted, folders[rank // 2], threads.of(rank), disk)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(threads.size) as pool:
        return list(pool.map(process, range(threads.size)))


@pytest.fixture
def machines(tmp_path: Path) -> list[Path]:
    """Two machines with the same three checkpoints."""
    for machine in ("a", "b"):
        for step in (10, 20, 30):
            write_small(tmp_path / machine, step)
    return [tmp_path / "a", tmp_path / "b"]


def on_both(machines: list[Path], step: int) -> list[str]:
    """The path of one step for two processes on each machine."""
    return [str(machine / f"checkpoint-{step}") for machine in machines for _ in range(2)]


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_the_newest_where_all_have_it(wanted: Any, machines: list[Path]) -> None:
    assert found_by(machines, wanted) == on_both(machines, 30)


@pytest.mark.parametrize("machine", [0, 1])
def test_the_newest_that_all_have(machine: int, machines: list[Path]) -> None:
    shutil.rmtree(machines[machine] / "checkpoint-30")
    assert found_by(machines, True) == on_both(machines, 20)
    assert (machines[1 - machine] / "checkpoint-30").is_dir()


def test_what_is_valid_on_one_machine_alone_is_passed_over(machines: list[Path]) -> None:
    """Each moves aside what is damaged on its own disk, however far the search goes."""
    flip(machines[0] / "checkpoint-20" / "trainer_state.json", 3)
    flip(machines[1] / "checkpoint-30" / "trainer_state.json", 3)
    assert found_by(machines, True) == on_both(machines, 10)
    assert {path.name for path in machines[0].iterdir()} == {"checkpoint-10", "checkpoint-20.damaged", "checkpoint-30"}
    assert {path.name for path in machines[1].iterdir()} == {"checkpoint-10", "checkpoint-20", "checkpoint-30.damaged"}


def test_nothing_that_all_have(machines: list[Path]) -> None:
    """Is no checkpoint at all: an error, or a fresh start, on every process."""
    shutil.rmtree(machines[1])
    assert found_by(machines, "auto") == [None] * 4
    errors = found_by(machines, True)
    assert all(isinstance(error, ValueError) and "there is no" in str(error) for error in errors)


def test_checkpoints_of_another_run_do_not_count(machines: list[Path]) -> None:
    """A newer step on one machine that another run wrote is not what the others have."""
    write_small(machines[1], 40, run_id="another")
    assert found_by(machines, True) == on_both(machines, 30)


def test_an_error_of_one_machine_is_everybodys(machines: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose newest was written by a version to come."""
    manifest = machines[1] / "checkpoint-30" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 99'))
    assert all(isinstance(error, CheckpointError) for error in found_by(machines, True))


def test_a_named_folder_is_each_machines_own(machines: list[Path]) -> None:
    assert found_by(machines, str(machines[0] / "checkpoint-20")) == [str(machines[0] / "checkpoint-20")] * 4


def test_with_one_disk_the_main_process_looks(machines: list[Path]) -> None:
    assert found_by(machines, True, per_machine=False) == [str(machines[0] / "checkpoint-30")] * 4
