"""Random states for as many processes as there are: the saved ones, or numbers that follow from them."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mainspring.checkpoint import Facts, restore_random_states, rng_state_name, save_torch, seal
from mainspring.seeding import capture_rng, set_seed


def written_by(folder: Path, processes: int, seed: int = 5, ranks: Any = None) -> Path:
    """A checkpoint with the states of some processes, those of `ranks`."""
    folder.mkdir()
    for rank in range(processes) if ranks is None else ranks:
        set_seed(seed + rank)
        save_torch(capture_rng(distributed=processes > 1), folder / rng_state_name(rank, processes))
    return folder


def sealed(folder: Path, processes: int) -> Path:
    """The same with a manifest, which says how many processes there were."""
    seal(folder, Facts("run", 7, 7, world_size=processes))
    return folder


def drawn(folder: Path, rank: int, processes: int, step: int = 7, stream: int | None = None) -> list[float]:
    """The next numbers of every generator after a resume."""
    set_seed(99)
    restore_random_states(folder, rank, processes, step=step, stream=rank if stream is None else stream)
    return [torch.rand(()).item(), float(np.random.rand()), random.random()]


def of_seed(seed: int) -> list[float]:
    """What the generators give after a seed."""
    set_seed(seed)
    return [torch.rand(()).item(), float(np.random.rand()), random.random()]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_as_many_processes_go_on_with_their_own(processes: int, tmp_path: Path) -> None:
    folder = sealed(written_by(tmp_path / "c", processes), processes)
    for rank in range(processes):
        assert drawn(folder, rank, processes) == of_seed(5 + rank)


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (4, 2), (2, 4), (2, 3)])
@pytest.mark.parametrize("manifest", [True, False], ids=["ours", "references"])
def test_another_number_derives_them(before: int, now: int, manifest: bool, tmp_path: Path, caplog: Any) -> None:
    """The same each time, of its own for each process, and told in one line."""
    folder = written_by(tmp_path / "c", before)
    if manifest:
        sealed(folder, before)
    with caplog.at_level(logging.INFO, "mainspring.checkpoint.random_states"):
        numbers = [drawn(folder, rank, now) for rank in range(now)]
    assert [record.levelname for record in caplog.records] == ["INFO"] * now
    assert f"written by {before} process(es), and here are {now}" in caplog.text
    assert numbers == [drawn(folder, rank, now) for rank in range(now)]
    fresh = [of_seed(99), *(of_seed(5 + rank) for rank in range(before))]
    for place in range(3):
        taken = [row[place] for row in (*numbers, *fresh)]
        assert len(set(taken)) == len(taken)


def test_they_depend_on_the_state_and_the_step(tmp_path: Path) -> None:
    one, other = written_by(tmp_path / "c", 2), written_by(tmp_path / "d", 2, seed=6)
    assert drawn(one, 0, 1) != drawn(other, 0, 1)
    assert drawn(one, 0, 1, step=7) != drawn(one, 0, 1, step=8)


def test_processes_of_one_stream_draw_the_same(tmp_path: Path) -> None:
    """Those that hold parts of one layer drop the same units."""
    folder = written_by(tmp_path / "c", 1)
    assert drawn(folder, 0, 2, stream=0) == drawn(folder, 1, 2, stream=0)


def test_a_machines_own_folder_is_of_as_many_processes(tmp_path: Path) -> None:
    """It has the states of the processes there alone; its manifest says how many there were in all."""
    folder = sealed(written_by(tmp_path / "c", 4, ranks=(2, 3)), 4)
    assert drawn(folder, 3, 4) == of_seed(8)
    assert drawn(folder, 0, 2) == drawn(folder, 0, 2) != of_seed(7)


def test_a_checkpoint_without_them_is_told(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "c").mkdir()
    assert drawn(tmp_path / "c", 0, 1) == of_seed(99)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "has no rng_state.pth" in caplog.text
