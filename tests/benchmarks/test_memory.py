"""The benchmark of memory: it counts real gradients and states, and judges by its goals."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.loading import load

benchmark = load("memory")
SIZE = benchmark.Size(width=8, layers=6)
LAYER = 8 * 8 * 4


@pytest.mark.parametrize(("way", "gradients"), [(benchmark.PLAIN, 6 * LAYER), (benchmark.INSIDE, LAYER)])
def test_gradients_and_states_are_counted_as_they_are(way: str, gradients: int, tmp_path: Path) -> None:
    reading = benchmark.measure("adamw_torch", way, SIZE, tmp_path)
    steps = 6 * 4  # a counter for each parameter
    assert reading == benchmark.Reading(weights=6 * LAYER, gradients=gradients, states=2 * 6 * LAYER + steps)


def test_a_missed_goal_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert benchmark.main(["--quick"]) == 0
    table = capsys.readouterr().out
    assert all(optim in table for optim in benchmark.OPTIMIZERS)
    monkeypatch.setattr(benchmark, "GRADIENT_GOAL", 0.1)
    assert benchmark.main(["--quick", "--markdown"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("| optimizer |")
    assert "missed: sgd: 0.12 of the gradients live at once, goal 0.1" in captured.err
