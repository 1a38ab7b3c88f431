"""The quickstart as a user runs it: real processes, a few updates; stopped at a random one, it loses nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples import prepare_data
from mainspring.trainer_utils import get_last_checkpoint

pytestmark = pytest.mark.slow

SCRIPT = prepare_data.HERE / "quickstart.py"
STEPS = 12  # saved and evaluated at 3, 6, 9, 12
CLOCK = re.compile("runtime|per_second|wait_fraction")


def command(output_dir: Path, *options: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--output_dir", str(output_dir), *options]


def small(output_dir: Path, data: str) -> list[str]:
    batch = {"sentiment": "4", "digits": "256"}[data]  # an update of a tenth of a second: time to interrupt it
    return command(output_dir, "--data", data, "--max_steps", str(STEPS), "--batch_size", batch, "--held_out", "20")


def run(arguments: list[str]) -> str:
    """The output of a run that must succeed."""
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def interrupt_at(arguments: list[str], update: int) -> str:
    """Press Ctrl-C as soon as the loss of ``update`` is logged; the output of the run, which must stop as promised."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    assert process.stdout is not None
    output, pressed = b"", False
    while chunk := os.read(process.stdout.fileno(), 65536):
        output += chunk
        if not pressed and len(re.findall(rb"(?<!\w)loss\b", output)) >= update:
            process.send_signal(signal.SIGINT)
            pressed = True
    process.stdout.close()
    text = output.decode()
    assert pressed, text
    assert process.wait() == 130, text
    return text


def weights(folder: Path) -> dict[str, bytes]:
    """The best model and the last one: the best may be older than an interruption."""
    names = ("model.safetensors", f"checkpoint-{STEPS}/model.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


def logged(folder: Path) -> list[dict[str, Any]]:
    """All that the run logged, but for what a clock said."""
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [{key: value for key, value in row.items() if not CLOCK.search(key)} for row in state["log_history"]]


@pytest.fixture(scope="module")
def data() -> str:
    return "sentiment" if prepare_data.prepare() else "digits"


@pytest.fixture(scope="module")
def uninterrupted(data: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    yield folder, run(small(folder, data))
    shutil.rmtree(folder)  # half a gigabyte, which pytest would keep


@pytest.fixture
def interrupted(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_trains_evaluates_saves_and_predicts(data: str, uninterrupted: tuple[Path, str]) -> None:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    folder, output = uninterrupted
    assert {"checkpoint-12", "config.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert re.search(rf"\d+/{STEPS} \[", output), "the progress bar"
    assert [row["step"] for row in logged(folder) if "loss" in row] == list(range(1, STEPS + 1))
    assert [row["step"] for row in logged(folder) if "eval_accuracy" in row] == [3, 6, 9, 12]
    assert "Accuracy on 20 held-out examples" in output
    kind = AutoModelForSequenceClassification if data == "sentiment" else AutoModelForImageClassification
    labels = set(kind.from_pretrained(folder).config.id2label.values())
    rows = re.findall(r"^.{72} (\w+) +(\w+) +[01]\.\d\d", output, flags=re.MULTILINE)
    assert len(rows) == 12
    assert {label for row in rows for label in row} <= labels


def test_finished_run_is_only_evaluated(data: str, uninterrupted: tuple[Path, str]) -> None:
    folder, output = uninterrupted
    before, history = weights(folder), logged(folder)
    again = run(small(folder, data))
    assert "Going on from" in again
    assert weights(folder) == before
    assert logged(folder) == history
    result = re.compile(r"Accuracy on .*")
    assert result.findall(again) == result.findall(output)


@pytest.mark.parametrize("seed", [0, 1])
def test_interrupted_at_a_random_update_and_run_again_ends_the_same(
    seed: int, data: str, uninterrupted: tuple[Path, str], interrupted: Path
) -> None:
    update = random.Random(seed).choice([1, 2, 4, 5, 7, 8])  # none at which the run saves anyway
    output = interrupt_at(small(interrupted, data), update)
    assert "The same command goes on from here" in output
    last = get_last_checkpoint(str(interrupted))
    assert last is not None
    assert update <= int(last.rsplit("-", 1)[1]) < STEPS, "the interruption saved what was done"

    assert f"Going on from {last}" in run(small(interrupted, data))
    folder, _ = uninterrupted
    assert weights(interrupted) == weights(folder)
    assert logged(interrupted) == logged(folder)


def test_digits_learns_and_begins_anew_when_told_to(tmp_path: Path) -> None:
    output = run(command(tmp_path, "--data", "digits", "--max_steps", "120"))
    found = re.search(r"Accuracy on 300 held-out examples: (0\.\d+)", output)
    assert found is not None, output
    assert float(found[1]) > 0.6, "guessing gives 0.1"
    anew = run(command(tmp_path, "--data", "digits", "--max_steps", "4", "--fresh"))
    assert "Going on" not in anew
    steps = {int(path.name.rsplit("-", 1)[1]) for path in tmp_path.glob("checkpoint-*")}
    assert max(steps) == 4, "the old run's checkpoints are gone"
