"""One script with DeepSpeed under every launcher, and under none: the engine, the stage, the same numbers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from mainspring.engines.base import EngineOptions
from mainspring.engines.choice import Asked, choose
from tests.deepspeed.read import alone
from tests.deepspeed.runs import config, whole
from tests.distributed.launch import environment
from tests.distributed.test_launchers import free_port, module, run, together

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
use_cpu: true
"""
"""With a CPU asked for, which has the reference train by plain data parallelism."""


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
    in_pieces, *runs = _read(tmp_path, "alone")
    assert in_pieces["empty"], "the model was not divided while it was loaded"
    _is_divided_over(1, in_pieces, 3)
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


def _deepspeed(*words: str) -> list[str]:
    """The command of DeepSpeed's launcher."""
    start = "from deepspeed.launcher.runner import main; main()"
    return [sys.executable, "-c", start, "--master_port", free_port(), *words]


def _file(folder: Path, stage: int) -> str:
    file = folder / "zero.json"
    file.write_text(json.dumps(config(stage)))
    return str(file)


def test_deepspeeds_own_launcher(tmp_path: Path) -> None:
    """The documented command line: the launcher adds `--local_rank`, which the parser takes."""
    words = ["--num_gpus", "2", "--module", WORKER, "parsed", str(tmp_path), f"--deepspeed={_file(tmp_path, 2)}"]
    _run(_deepspeed(*words))
    for rank in range(2):
        facts = _read(tmp_path, "parsed", rank)
        _is_divided_over(2, facts, 2)
        assert facts["local_rank"] == rank


PDSH = """#!/bin/sh
# Runs a command for each host of -w, here: %n is the number of the host.
while [ "$1" != -w ]; do shift; done
hosts=$(echo "$2" | tr , ' '); shift 2
number=0; started=""
for host in $hosts; do
    echo "$*" | sed "s/%n/$number/g" | sh & started="$started $!"
    number=$((number + 1))
done
for one in $started; do wait $one || exit 1; done
"""


def test_two_machines_of_a_hostfile(tmp_path: Path) -> None:
    """With `--no_local_rank`, as a script that parses its arguments by itself wants it; both machines are this one."""
    (tmp_path / "pdsh").write_text(PDSH)
    (tmp_path / "pdsh").chmod(0o755)
    (tmp_path / "hosts").write_text("first slots=1\nsecond slots=1\n")
    words = ["--hostfile", str(tmp_path / "hosts"), "--master_addr", "127.0.0.1", "--no_ssh_check", "--no_local_rank"]
    command = _deepspeed(*words, "--module", WORKER, "launched", str(tmp_path))
    run(command, PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHONPATH=environment()["PYTHONPATH"])
    for rank in range(2):
        _is_divided_over(2, _read(tmp_path, "launched", rank), 2)


def test_tasks_of_slurm(tmp_path: Path) -> None:
    """Each knows its place on the machine, which DeepSpeed takes its device by."""

    def variables(rank: int) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_ID": "1",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NODEID": "0",
            "SLURM_NTASKS": "2",
            "SLURM_TASKS_PER_NODE": "2",
            "SLURM_NODELIST": "no-such-machine",
        }

    command = module(WORKER, "parsed", str(tmp_path), f"--deepspeed={_file(tmp_path, 3)}")
    together([(command, variables(rank)) for rank in range(2)])
    for rank in range(2):
        facts = _read(tmp_path, "parsed", rank)
        _is_divided_over(2, facts, 3)
        assert facts["local_rank"] == rank


def test_accelerates_launcher(tmp_path: Path) -> None:
    """A script that leaves DeepSpeed to the launcher gets it, and no silent data parallelism."""
    file = tmp_path / "deepspeed.yaml"
    file.write_text(ACCELERATE_FILE)
    _run(module("accelerate.commands.launch", "--config_file", str(file), "--module", WORKER, "silent", str(tmp_path)))
    for rank in range(2):
        _is_divided_over(2, _read(tmp_path, "silent", rank), 2)


def test_accelerates_launcher_without_a_file(tmp_path: Path) -> None:
    """Its options ask for DeepSpeed, and for another stage than it would choose."""
    words = ["--use_deepspeed", "--zero_stage", "3", "--num_processes", "2", "--main_process_port", free_port()]
    _run(module("accelerate.commands.launch", *words, "--module", WORKER, "silent", str(tmp_path)))
    for rank in range(2):
        _is_divided_over(2, _read(tmp_path, "silent", rank), 3)


def test_deepspeeds_launcher_without_a_configuration_is_warned_of() -> None:
    """What it starts is plain data parallelism, as under any other launcher."""
    environment = dict.fromkeys(("CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "RANK"), "0")
    with pytest.warns(UserWarning, match="DeepSpeed's launcher started this run, and the engine is 'ddp'"):
        assert choose(Asked(EngineOptions(), 2, "cpu", environment)) == "ddp"
