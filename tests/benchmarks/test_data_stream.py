"""The benchmark of the data's random stream: it goes through both loaders, and its table names the goal."""

from __future__ import annotations

import pytest

from tests.benchmarks.loading import load

benchmark = load("data_stream")


def test_both_loaders_are_gone_through() -> None:
    plain, drawn, _ = benchmark.measure(epochs=1, batches=5)
    assert min(plain, drawn) > 0


def test_a_loader_that_gives_something_else_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="gave 3 batches of 5"):
        benchmark.time_per_batch([1, 2, 3], 5)


@pytest.mark.parametrize(("cost", "verdict"), [(19.0, "met"), (21.0, "missed")])
def test_the_table_names_the_goal(cost: float, verdict: str) -> None:
    assert f"at most 20 µs per batch more: {verdict}" in benchmark.table(10.0, 10.0 + cost, cost, markdown=True)


def test_a_smoke_run_never_misses(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--quick"]) == 0
    assert "DrawnLoader" in capsys.readouterr().out
