"""The benchmark of ragged text: every order sees every text, and the table says what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.loading import load

data = load("data")

TINY = data.Workload(16, median=5, longest=12, batch_size=4, rows=2, width=16, layers=1)


@pytest.mark.parametrize("contender", data.CONTENDERS)
def test_every_order_is_measured(contender: str) -> None:
    reading = data.measure_here(contender, TINY)
    assert reading.tokens_per_second > 0
    assert 0 <= reading.padding < 0.6


def test_packing_has_next_to_no_padding() -> None:
    """Or else another order was measured under its name."""
    padded, packed = (
        data.measure_here(f"mainspring: {order}", data.QUICK).padding for order in ("padding", "pack_sequences")
    )
    assert packed < 0.3 * padded


def test_rows_compare_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round on a slow machine slows both: the ratio is taken inside the round, then the median."""
    speeds = {data.BASELINE: [100.0, 10.0, 50.0], "mainspring: pack_sequences": [200.0, 30.0, 75.0]}
    order: list[str] = []

    def measure(contender: str, workload: Any) -> Any:
        order.append(contender)
        return data.Reading(speeds[contender][order.count(contender) - 1], 0.25)

    monkeypatch.setattr(data, "measure_apart", measure)
    rows = data.compare([*speeds], TINY, 3)
    assert order == [*speeds, *reversed([*speeds]), *speeds]
    assert [row.ratio for row in rows] == [1.0, 2.0]
    assert rows[1].tokens_per_second == 75.0
    assert data.best_of_ours(rows) is rows[1]
    assert data.table(rows, TINY, markdown=True).count("|") == 4 * 5
    assert "2.00x" in data.table(rows, TINY, markdown=False)


def test_the_exit_status_says_whether_the_goal_is_reached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data.sys, "argv", ["data.py"])
    for ratio, status, word in ((1.9, 0, "reached"), (1.7, 1, "missed")):
        rows = [data.Row(data.BASELINE, 1.0, 0.5, 1.0), data.Row("mainspring: pack_sequences", ratio, 0.0, ratio)]
        monkeypatch.setattr(data, "compare", lambda *_, rows=rows: rows)
        assert data.main() == status
        assert word in capsys.readouterr().out
