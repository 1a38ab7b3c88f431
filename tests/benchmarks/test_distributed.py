"""The benchmark of several processes: what it times really trains and saves in two of them, and its ratios are a round's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.loading import load

benchmark = load("distributed")


@pytest.mark.slow
@pytest.mark.distributed
def test_every_loop_is_timed_in_two_processes(tmp_path: Path) -> None:
    """The processes themselves make sure of the world and of the wrapper."""
    contenders = list(benchmark.PACKAGES)
    found = benchmark.launch("step", contenders, benchmark.QUICK, tmp_path)
    assert list(found) == ["gpt2", "mlp"]
    for taken in found.values():
        assert list(taken) == contenders
        assert all(seconds > 0 for turn in taken.values() for seconds in turn)


@pytest.mark.slow
@pytest.mark.distributed
def test_every_save_is_timed_beside_a_bare_write(tmp_path: Path) -> None:
    found = benchmark.launch("save", [benchmark.OURS], benchmark.QUICK, tmp_path)
    assert list(found) == [benchmark.SHARDED, benchmark.WHOLE]
    for taken in found.values():
        assert [len(turn) for turn in taken] == [benchmark.QUICK.saves]
        assert all(reading["save"] > 0 and reading["bare"] > 0 for turn in taken for reading in turn)
    assert list(tmp_path.iterdir()) == []


def test_a_loop_that_ends_early_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "run_trainer", lambda contender, workload, clock: clock.tick())
    with pytest.raises(RuntimeError, match="fewer than 3 updates of gpt2"):
        benchmark.measure_step(benchmark.OURS, "gpt2", benchmark.QUICK)


def test_turns_are_taken_and_reversed() -> None:
    order: list[str] = []
    benchmark.turns(["a", "b"], 3, order.append)
    assert order == ["a", "b", "b", "a", "a", "b"]


STEPS = {"hand-written": [1.0, 5.0, 2.0], "mainspring": [1.1, 5.5, 9.0]}


def test_rows_compare_within_a_round() -> None:
    rows = benchmark.step_rows(STEPS, "gpt2")
    assert rows[2] == ["mainspring", "5500.000", "+500.000", "1.100x"]
    assert benchmark.table(rows, markdown=True).count("|") == 4 * 5
    turn = [{"save": 1.5 * bare, "bare": bare} for bare in (1.0, 2.0, 9.0)]
    assert benchmark.save_rows({benchmark.SHARDED: [turn]})[1] == [benchmark.SHARDED, "3.000", "2.000", "1.500x"]


@pytest.mark.parametrize(("words", "status"), [([], 1), (["--quick"], 0)])
def test_a_missed_goal_is_the_exit_status(words: list[str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {"gpt2": STEPS, "mlp": STEPS}
    monkeypatch.setattr(benchmark, "launch", lambda *_: found)
    monkeypatch.setattr("sys.argv", ["distributed.py", "--only", "step", "--contenders", "mainspring", *words])
    assert benchmark.main() == status


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(benchmark.PACKAGES, "transformers", "surely_not_installed")
    assert benchmark.available(["hand-written", "transformers"]) == ["hand-written"]
    assert "surely_not_installed" in capsys.readouterr().err
