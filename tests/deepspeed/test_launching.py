"""One script with DeepSpeed under every launcher, and under none: the engine, the stage, the same numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deepspeed.read import alone
from tests.deepspeed.runs import whole
from tests.distributed.launch import environment
from tests.distributed.test_launchers import module, run

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.deepspeed, pytest.mark.distributed, pytest.mark.slow]

WORKER = "tests.deepspeed.worker_alone"

ACCELERATE_FILE = """
compute_environment: LOCAL_MACHINE
deepspeed_config:
  gradient_accumulation_steps: 1
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: false
  zero_stage: 2
distributed_type: DEEPSPEED
machine_rank: 0
main_process_port: 0
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: false
"""


def _run(command: list[str]) -> None:
    run(command, PYTHONPATH=environment()["PYTHONPATH"])


def _read(folder: Path, mode: str, rank: int = 0) -> Any:
    return json.loads((folder / f"{mode}-{rank}.json").read_text())


def _is_divided_over(processes: int, facts: dict[str, Any], stage: int) -> None:
    assert (facts["world_size"], facts["wrapper"], facts["stage"]) == (processes, "DeepSpeedEngine", stage)
    share = processes if stage > 0 else 1
    assert 2 * whole() / share <= facts["states"] < 2.02 * whole() / share
    assert facts["loss"] == pytest.approx(alone()["loss"], rel=5e-5)


def test_one_process_that_no_launcher_started(tmp_path: Path) -> None:
    """Is a world of its own, whatever ran before it in the process, and leaves plain runs what they were."""
    _run(module(WORKER, "alone", str(tmp_path)))
    runs = _read(tmp_path, "alone")
    for facts, stage in zip(runs, (None, 2, 3, None, 0, 1), strict=True):
        if stage is None:
            assert (facts["wrapper"], facts["engine"]) == ("GPT2LMHeadModel", "single")
            assert facts["loss"] == alone()["loss"]
        else:
            _is_divided_over(1, facts, stage)


def test_a_notebook_that_emulates_a_launcher(tmp_path: Path) -> None:
    """The documented cell."""
    _run(module(WORKER, "notebook", str(tmp_path)))
    for facts, stage in zip(_read(tmp_path, "notebook"), (3, 2), strict=True):
        _is_divided_over(1, facts, stage)


def test_deepspeeds_own_launcher(tmp_path: Path) -> None:
    """With `--no_local_rank`, as a script that parses its arguments by itself wants it."""
    start = "from deepspeed.launcher.runner import main; main()"
    words = [
        "--no_local_rank",
        "--num_gpus",
        "2",
        "--master_port",
        "29831",
        "--module",
        WORKER,
        "launched",
        str(tmp_path),
    ]
    _run([sys.executable, "-c", start, *words])
    for rank in range(2):
        _is_divided_over(2, _read(tmp_path, "launched", rank), 2)


def test_accelerates_launcher(tmp_path: Path) -> None:
    """A script that leaves DeepSpeed to the launcher gets it, and no silent data parallelism."""
    file = tmp_path / "deepspeed.yaml"
    file.write_text(ACCELERATE_FILE)
    _run(module("accelerate.commands.launch", "--config_file", str(file), "--module", WORKER, "silent", str(tmp_path)))
    for rank in range(2):
        _is_divided_over(2, _read(tmp_path, "silent", rank), 2)
