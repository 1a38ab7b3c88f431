"""An example under `accelerate launch`, as the guide runs its scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples import prepare_data
from tests.examples.runs import QUIET, assert_files, losses, results

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SETTINGS = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
# On one machine and without MPI, `--cpu` starts one process however many are asked for, which is refused where these are
# several; `--multi_gpu` starts as many as are asked for, here without any GPU.
LAUNCHES = {"one process": ("--cpu", "--num_processes", "1"), "two processes": ("--multi_gpu", "--num_processes", "2")}


@pytest.mark.parametrize(("launch", "updates"), [("one process", 160), ("two processes", 80)])
def test_an_example_trains_evaluates_and_predicts(launch: str, updates: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCHES[launch], *SETTINGS]
    options = ["--num_train_epochs", "8", "--per_device_train_batch_size", "16", "--logging_steps", "10"]
    script = str(prepare_data.HERE / "tabular_regression.py")
    folder = tmp_path / "out"
    done = subprocess.run(
        [*command, script, *options, "--do_train", "--do_eval", "--do_predict", "--output_dir", str(folder), *QUIET],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert_files(folder, "predictions.txt", f"checkpoint-{updates}")
    series = losses(folder)
    assert len(series) == updates // 10
    assert series[-1] < series[0] / 1.5
    assert results(folder)["predict_r2"] > 0.2, "the mean alone gives 0"
    assert len((folder / "predictions.txt").read_text().splitlines()) == 88
    assert done.stdout.count("Share of the variance explained, 88 patients") == 1, "one process prints"
