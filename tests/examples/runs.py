"""The examples' command lines, run in this process, where torch is imported already; and what such a run leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

QUIET = ("--use_cpu", "--report_to", "none", "--disable_tqdm", "true")


class Runner:
    """Calls a script's `main` as the command line would."""

    def __init__(self, script: ModuleType, options: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
        self._script = script
        self._options = options
        self._capsys = capsys

    def __call__(self, output_dir: Path, *options: str) -> str:
        """What a run printed, that must succeed."""
        return self.with_words("--output_dir", str(output_dir), *self._options, *QUIET, *options)

    def with_words(self, *words: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(self._script.__file__), *words])
            self._script.main()
        return self._capsys.readouterr().out


def results(folder: Path) -> dict[str, Any]:
    """All metrics that a run saved."""
    loaded: dict[str, Any] = json.loads((folder / "all_results.json").read_text())
    return loaded


def losses(folder: Path) -> list[float]:
    """The training losses that a run logged, those before it was resumed included."""
    rows = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [row["loss"] for row in rows if "loss" in row]


def printed_losses(output: str) -> int:
    """How often a run printed a loss of its training: those before it was resumed are not among them."""
    return output.count("{'loss'")


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def assert_files(folder: Path, *more: str) -> None:
    """What every run with all three tasks leaves."""
    wanted = {"train_results.json", "eval_results.json", "all_results.json", "trainer_state.json", *more}
    assert wanted <= {path.name for path in folder.iterdir()}


def assert_resumes(run: Runner, folder: Path, step: int) -> None:
    """The same command goes on from the last checkpoint, to the same weights, without another update."""
    weights, before = folder / "model.safetensors", losses(folder)
    trained = weights.read_bytes()
    weights.unlink()
    output = run(folder, "--do_train")
    assert f"Going on from {folder / f'checkpoint-{step}'}" in output
    assert printed_losses(output) == 0
    assert weights.read_bytes() == trained
    assert losses(folder) == before
