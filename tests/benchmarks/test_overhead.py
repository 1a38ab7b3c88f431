"""The overhead benchmark: every loop really makes the updates it is timed on, and the table says what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.loading import load

overhead = load("overhead")


@pytest.mark.parametrize("name", ["mlp", "gpt2"])
@pytest.mark.parametrize("contender", ["hand-written", "mainspring", "transformers"])
def test_contender_runs_the_updates_that_are_timed(contender: str, name: str) -> None:
    """A loop that ended early would have no reading."""
    workload = overhead.Workload(name, 2, 1, 2)
    reading = overhead.measure_here(contender, workload)
    assert reading.wall > 0
    assert reading.processor > 0


def test_a_loop_that_ends_early_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time per update would be wrong."""
    monkeypatch.setattr(overhead, "runner", lambda contender: lambda workload, clock: clock.update_done())
    with pytest.raises(RuntimeError, match="fewer than 3 updates"):
        overhead.measure_here("hand-written", overhead.Workload("mlp", 2, 1, 2))


def test_rows_compare_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round on a slow machine shifts both loops: the difference is taken inside the round, then the median."""
    times = {"hand-written": [1.0, 5.0, 2.0], "mainspring": [1.5, 5.5, 9.0]}
    order: list[str] = []

    def measure(contender: str, workload: Any, keep_memory: bool) -> Any:
        order.append(contender)
        value = times[contender][order.count(contender) - 1] * 1e-6
        return overhead.Reading(value, value)

    monkeypatch.setattr(overhead, "measure_apart", measure)
    workload = overhead.QUICK["mlp"]
    rows = overhead.compare(["hand-written", "mainspring"], workload, 3)
    assert order == ["hand-written", "mainspring", "mainspring", "hand-written", "hand-written", "mainspring"]
    assert rows[1].added_processor == pytest.approx(0.5)
    assert rows[1].ratio == pytest.approx(1.5)
    assert rows[0].processor == pytest.approx(2.0)
    assert overhead.table(rows, workload, markdown=True).count("|") == 4 * 7
    assert "mainspring" in overhead.table(rows, workload, markdown=False)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A loop that is left out is never left out in silence."""
    monkeypatch.setitem(overhead.CONTENDERS, "lightning", "surely_not_installed")
    assert overhead.available(["hand-written", "lightning"]) == ["hand-written"]
    assert "surely_not_installed" in capsys.readouterr().err
