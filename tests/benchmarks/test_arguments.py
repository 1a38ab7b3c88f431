"""The benchmark of the options: it measures what it says, in the order it says, and its table names the goals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.loading import FOLDER, load

SCRIPT = FOLDER / "arguments.py"

benchmark = load("arguments")


@pytest.mark.parametrize("package", benchmark.PACKAGES)
def test_each_library_is_measured(package: str, tmp_path: Path) -> None:
    reading = benchmark.measure(package, 2, tmp_path)
    assert min(reading.import_, reading.first, reading.build, reading.help) > 0


def test_help_needs_no_torch(tmp_path: Path) -> None:
    assert benchmark.loads_torch("mainspring", tmp_path) is False
    (tmp_path / "script_torch.py").write_text("import torch")
    assert benchmark.last_value(benchmark.python("-c", benchmark.LOADED, str(tmp_path / "script_torch.py"))) is True


def test_a_script_without_the_options_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SCRIPT", "print('usage')")
    with pytest.raises(RuntimeError, match="does not list the options"):
        benchmark.measure("mainspring", 1, tmp_path)
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        benchmark.measure("surely_not_installed", 1, tmp_path)


def test_medians_ratio_and_goals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order: list[str] = []

    def measure(package: str, builds: int, folder: Path) -> Any:
        order.append(package)
        value = {"mainspring": 0.001, "transformers": 0.1}[package] * order.count(package)
        return benchmark.Reading(value, value, value, value)

    monkeypatch.setattr(benchmark, "measure", measure)
    found = benchmark.compare(["mainspring", "transformers"], 3, 1, tmp_path)
    assert order == ["mainspring", "transformers", "transformers", "mainspring", "mainspring", "transformers"]
    assert found["mainspring"].help == pytest.approx(0.002)
    lines = benchmark.table(found, markdown=True).splitlines()
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == ["help", "2", "200", "0.010x", "300"]
    assert "import" in benchmark.table({"mainspring": found["mainspring"]}, markdown=False)
    assert benchmark.missed(found["mainspring"]) == ["first", "build"]
    assert benchmark.missed(benchmark.Reading(9, 0.0009, 0.0009, 0.3)) == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark, "PACKAGES", ("mainspring", "surely_not_installed"))
    assert benchmark.available() == ["mainspring"]
    assert "surely_not_installed" in capsys.readouterr().err
