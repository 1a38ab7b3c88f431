"""The benchmark of evaluations: it runs, all contenders find the same, and its table and goals say what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks.loading import load

benchmark = load("evaluation")

Reading = benchmark.Reading

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux")


@pytest.mark.slow
def test_each_contender_is_measured_and_finds_the_same(tmp_path: Path) -> None:
    found = benchmark.compare(benchmark.available(), benchmark.QUICK, tmp_path)
    assert [*found] == [*benchmark.CONTENDERS]
    assert min(reading.seconds for reading in found.values()) > 0


def test_memory_is_that_of_the_peak() -> None:
    before = benchmark.peak_mib(reset=True)
    held = bytearray(64 << 20)
    held[::4096] = b"1" * len(held[::4096])
    del held
    assert 60 < benchmark.peak_mib() - before < 80


def test_ratios_are_of_the_reference_and_goals_are_looked_at() -> None:
    good = {
        "mainspring: all": Reading(5, 100, 0.5),
        "mainspring: file": Reading(7, 150, 0.5),
        "mainspring: streaming": Reading(5, 10, 0.5),
        benchmark.REFERENCE: Reading(10, 200, 0.5),
        "mainspring: large": Reading(50, 100, 0.5),
    }
    assert benchmark.missed(good) == []
    lines = benchmark.table(good, markdown=True).splitlines()
    assert lines[2] == "| mainspring: all | 5.0 | 100 | 0.50x | 0.50x |"
    assert lines[-1] == "| mainspring: large | 50.0 | 100 |  |  |"
    bad = {
        **good,
        "mainspring: all": Reading(8, 130, 0.5),
        "mainspring: file": Reading(7.1, 150, 0.5),
        "mainspring: large": Reading(50, 301, 0.5),
    }
    assert benchmark.missed(bad) == [
        "time of mainspring: all",
        "memory of mainspring: all",
        "time of mainspring: file",
        "memory of mainspring: large",
    ]


def test_without_the_reference_nothing_was_compared_and_that_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {name: Reading(5, 10, 0.5) for name in benchmark.CONTENDERS if name != benchmark.REFERENCE}
    monkeypatch.setattr(benchmark, "compare", lambda *args: found)
    monkeypatch.setattr(sys, "argv", ["evaluation.py"])
    assert benchmark.main() == 1
    assert "not compared: no transformers" in capsys.readouterr().out
    found[benchmark.REFERENCE] = Reading(10, 200, 0.5)
    assert benchmark.main() == 0


@pytest.mark.parametrize("other", [0.5000001, float("nan")])
@pytest.mark.parametrize("at", [1, 3])
def test_scores_that_differ_are_an_error(
    at: int, other: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Between contenders as between rounds; the large evaluation has other samples."""
    scores = iter([0.5, 0.5, 0.25, 0.25, 0.5, 0.5])
    contenders = ["mainspring: all", benchmark.REFERENCE, "mainspring: large"]
    size = benchmark.Size(rounds=2)
    monkeypatch.setattr(benchmark, "measure", lambda *args: Reading(5, 10, next(scores)))
    assert benchmark.compare(contenders, size, tmp_path)["mainspring: large"].accuracy == 0.25
    scores = iter([0.5, 0.5, 0.25, 0.25, 0.5, 0.5][:at] + [other] + [0.5] * 5)
    with pytest.raises(RuntimeError, match="the scores differ"):
        benchmark.compare(contenders, size, tmp_path)


def test_a_failing_contender_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="surely_not_installed"):
        benchmark.measure("surely_not_installed: all", benchmark.QUICK, tmp_path)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "CONTENDERS", ("mainspring: all", "surely_not_installed: all"))
    assert benchmark.available() == ["mainspring: all"]
    assert "surely_not_installed" in capsys.readouterr().err
