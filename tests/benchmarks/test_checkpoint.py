"""The benchmark of checkpoints: it measures real saves and resumes, in the order it says, and judges by its goals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.loading import load

benchmark = load("checkpoint")


@pytest.mark.parametrize("contender", benchmark.PACKAGES)
def test_every_save_is_measured_beside_its_bare_write(contender: str, tmp_path: Path) -> None:
    taken = benchmark.measure_saves(contender, benchmark.Size(32, 2, saves=2), tmp_path)
    assert len(taken) == 2
    assert all(0 < reading["blocking"] <= reading["total"] for reading in taken)
    assert all(reading["bare"] > 0 for reading in taken)
    assert not (tmp_path / "bare").exists()


@pytest.mark.parametrize("contender", [benchmark.SYNC, benchmark.REFERENCE])
def test_both_places_are_resumed_from(contender: str, tmp_path: Path) -> None:
    taken = benchmark.measure_resumes(contender, benchmark.Size(early=2, late=5, resumes=1), tmp_path)
    assert [sorted(reading) for reading in taken] == [["early", "late"]]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-5"]


def test_goals_are_judged_by_the_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A slow disk slows the bare write too: the ratio is taken inside the turn, then the median."""
    readings = {
        benchmark.SYNC: [{"blocking": 1.1 * bare, "total": 1.1 * bare, "bare": bare} for bare in (1.0, 2.0, 9.0)],
        benchmark.BACKGROUND: [{"blocking": 0.22, "total": 3.0, "bare": 1.0}] * 3,
    }
    order: list[str] = []

    def measure(what: str, contender: str, size: Any, place: Path) -> Any:
        order.append(contender)
        return readings[contender]

    monkeypatch.setattr(benchmark, "measure_apart", measure)
    both = [benchmark.SYNC, benchmark.BACKGROUND]
    found = benchmark.alternate("save", both, benchmark.Size(rounds=2), tmp_path)
    assert order == [*both, *reversed(both)]
    goals = benchmark.save_goals(found)
    assert [value for value, _ in goals.values()] == pytest.approx([1.1, 0.2])
    assert [line.rpartition(" ")[2] for line in benchmark.verdict(goals).splitlines()] == ["reached", "MISSED"]
    rows = benchmark.save_rows(found)
    assert rows[1] == [benchmark.SYNC, "2.200", "2.200", "2.000", "1.100x", "1.100x"]
    assert benchmark.table(rows, markdown=True).count("|") == 4 * 7
    late = benchmark.resume_goals({benchmark.SYNC: [{"early": 0.1, "late": 0.2}]})
    assert "MISSED" in benchmark.verdict(late)


@pytest.mark.parametrize(("words", "status"), [([], 1), (["--quick"], 0)])
def test_a_missed_goal_is_the_exit_status(words: list[str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measure_apart", lambda *_: [{"early": 0.1, "late": 0.2}])
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", "--only", "resume", *words])
    assert benchmark.main() == status


def test_what_is_never_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="checkpoint-1 was not written"):
        benchmark.wait_for(tmp_path / "checkpoint-1", patience_s=0.0)
