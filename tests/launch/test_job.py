"""What a command line without a configuration file comes to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import OptionError
from mainspring.launch import job, machine
from mainspring.launch.elastic import torch_options
from mainspring.launch.job import Wanted, job_of


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script to start, no configuration, no devices."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    monkeypatch.setattr(job.accelerate_file, "default_file", lambda: None)
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))


def test_without_a_gpu_it_is_one_process_and_said_so() -> None:
    found = job_of(Wanted("train.py"))
    assert found.nproc == 1
    assert found.environment == {}
    assert found.lines == ("1 process on the CPU (no GPU was found); --nproc N starts more",)


@pytest.mark.usefixtures("four_gpus")
def test_each_gpu_has_a_process() -> None:
    found = job_of(Wanted("train.py"))
    assert found.nproc == 4
    assert found.lines == ("4 processes on cuda",)
    assert job_of(Wanted("train.py", nproc=2)).nproc == 2


@pytest.mark.usefixtures("four_gpus")
def test_more_processes_than_gpus_are_refused_unless_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="^nproc=5: there are 4 of kind cuda"):
        job_of(Wanted("train.py", nproc=5))
    for wanted in (Wanted("train.py", nproc=5, cpu=True), Wanted("train.py", nproc=5)):
        found = job_of(wanted)
        assert (found.nproc, found.environment["ACCELERATE_USE_CPU"]) == (5, "true")
        assert "as was asked for" in found.lines[0]
        monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")


def test_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cores", lambda: 8)
    assert job_of(Wanted("train.py", nproc=3)).environment["OMP_NUM_THREADS"] == "2"
    assert job_of(Wanted("train.py", nproc=9)).environment["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in job_of(Wanted("train.py", nproc=1)).environment
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in job_of(Wanted("train.py", nproc=3)).environment


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    for physical, cores in ((16, 3), (2, 2), (None, 3)):
        monkeypatch.setattr("psutil.cpu_count", lambda logical, answer=physical: answer)
        assert machine._cores() == cores


def test_the_precision_is_handed_on() -> None:
    assert job_of(Wanted("train.py", mixed_precision="bf16")).environment == {"ACCELERATE_MIXED_PRECISION": "bf16"}


def test_on_one_machine_a_free_port_is_found() -> None:
    options = torch_options(job_of(Wanted("train.py", ("--lr", "1"), nproc=2)))
    assert options.standalone
    assert (options.training_script, options.training_script_args) == ("train.py", ["--lr", "1"])
    said = torch_options(job_of(Wanted("train.py", nproc=2, master_port=1234)))
    assert (said.standalone, said.rdzv_endpoint) == (False, "127.0.0.1:1234")
    assert job_of(Wanted("train.py", master_addr="here")).meeting.endpoint == "here:29500"


def test_torchs_launcher_understands_what_is_said() -> None:
    wanted = Wanted(
        "package.module",
        ("--nproc", "7"),  # torchrun would complain that it cannot tell which of its options is meant
        is_module=True,
        nproc=2,
        nnodes="1:3",
        rdzv_endpoint="host:1",
        rdzv_id="job",
        rdzv_conf="is_host=1,timeout=5",
        local_addr="here",
        max_restarts=4,
        shutdown_timeout=60,
    )
    options = torch_options(job_of(wanted))
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("1:3", "2", 4)
    assert (options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id) == ("c10d", "host:1", "job")
    assert (options.rdzv_conf, options.local_addr, options.shutdown_timeout) == ("is_host=1,timeout=5", "here", 60)
    assert (options.module, options.training_script) == (True, "package.module")
    assert options.training_script_args == ["--nproc", "7"]


def test_several_machines() -> None:
    found = job_of(Wanted("train.py", nproc=2, nnodes="3", node_rank=2, master_addr="first"))
    options = torch_options(found)
    assert (options.nnodes, options.node_rank) == ("3:3", 2)
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("static", "first:29500")
    assert found.lines[0].startswith("3 machines (this is number 2), each with 2 processes")
    assert "they meet at first:29500" in found.lines[0]


def test_machines_that_come_and_go_are_numbered_as_they_come() -> None:
    found = job_of(Wanted("train.py", nproc=2, nnodes="1:2", master_addr="first", master_port=1))
    assert found.meeting.rank is None
    assert "machines (numbered as they come), each" in found.lines[0]
    options = torch_options(found)
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "first:1")


@pytest.mark.parametrize(
    ("nnodes", "max_restarts", "apart"),
    [("2", 0, False), ("1:2", 1, True), ("1:2", 0, True), ("2", 1, True), ("1", 1, True), ("1", 0, False)],
)
def test_processes_that_restart_meet_anew_each_time(nnodes: str, max_restarts: int, apart: bool) -> None:
    found = job_of(Wanted("t", is_module=True, nnodes=nnodes, max_restarts=max_restarts, rdzv_endpoint="m:1"))
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in found.environment) == apart


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"nnodes": "2", "node_rank": 0},
            "^nnodes='2': several machines need to know where they meet; .*--master-addr",
        ),
        ({"nnodes": "2", "master_addr": "h"}, "^nnodes='2': nobody says which .*--node-rank"),
        ({"nnodes": "2", "master_addr": "h", "node_rank": 2}, "^node_rank=2: there are 2 machines"),
        ({"node_rank": 1}, "^node_rank=1: there is one machine"),
        ({"rdzv_endpoint": "h:1", "master_port": 2}, "^rdzv_endpoint='h:1': --master-addr or .*give one"),
        (
            {"nnodes": "2", "node_rank": 0, "master_addr": "h", "max_restarts": 1},
            "^max_restarts=1: with a static .*c10d",
        ),
        ({"nnodes": "2:1"}, "^nnodes='2:1': is no number"),
        ({"nnodes": "two"}, "^nnodes='two': is no number"),
        ({"nnodes": "1:2", "rdzv_backend": "static", "master_addr": "h"}, "^rdzv_backend='static'.*use c10d"),
    ],
)
def test_what_does_not_go_together_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        job_of(Wanted("train.py", **said))


def test_a_script_that_is_not_there_is_said_before_anything_starts() -> None:
    with pytest.raises(FileNotFoundError, match=r"tarin\.py: no such file"):
        job_of(Wanted("tarin.py"))
    assert job_of(Wanted("tarin", is_module=True)).nproc == 1
