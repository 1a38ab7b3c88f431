"""One script, unchanged, under every launcher: the same world, the same wrapper, the same losses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mainspring.errors import EXIT_RESUMABLE
from tests.distributed.launch import PROCESSES, ROOT
from tests.helpers import ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SCRIPT = str(ROOT / "tests" / "distributed" / "worker_launched.py")
ROWS = 4
"""Per process and micro-batch."""
HANG_S = 300

DDP_FILE = f"""
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
machine_rank: 0
main_process_port: 0
mixed_precision: 'no'
num_machines: 1
num_processes: {PROCESSES}
rdzv_backend: static
same_network: true
use_cpu: false
"""
FSDP_FILE = f"""{DDP_FILE.replace("MULTI_GPU", "FSDP")}
fsdp_config:
  fsdp_auto_wrap_policy: NO_WRAP
  fsdp_version: 2
"""
CPU_FILE = DDP_FILE.replace("MULTI_GPU", "MULTI_CPU").replace("use_cpu: false", "use_cpu: true")

TWO_MACHINES_FILE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
downcast_bf16: 'no'
machine_rank: 0
main_process_ip: {address}
main_process_port: 9898
main_training_function: main
mixed_precision: fp16
num_machines: 2
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""

NOTEBOOK = """
import torch
torch.set_num_threads(2)
torch.ones(512, 512).matmul(torch.ones(512, 512))  # threads that a copy of this process would wait for
from mainspring import TrainingArguments, notebook_launcher
from tests.distributed.worker_launched import main
assert TrainingArguments("out").world_size == 1
notebook_launcher(main, ({out!r}, {rows}), num_processes={processes}, use_port="{port}")
"""


def environment(**more: str) -> dict[str, str]:
    """That of a user: of this test run nothing but the threads. Where there are GPUs, the CPU is asked for."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "SLURM_"))}
    cpu = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **cpu, **more}


def module(name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", name, *words]


def run(command: list[str], status: int = 0, **more: str) -> str:
    """What the command prints; it must end with `status`."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "check": False}
    done = subprocess.run(command, env=environment(**more), cwd=ROOT, timeout=HANG_S, **options)
    assert done.returncode == status, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    printed: str = done.stdout
    return printed


def plain(folder: Path) -> None:
    run([sys.executable, SCRIPT, str(folder), str(ROWS * PROCESSES)])


def torchrun(folder: Path) -> None:
    words = ["--standalone", f"--nproc_per_node={PROCESSES}", SCRIPT, str(folder), str(ROWS)]
    run(module("torch.distributed.run", *words))


def accelerate(folder: Path) -> None:
    (folder / "ddp.yaml").write_text(DDP_FILE)
    words = ["--config_file", str(folder / "ddp.yaml"), SCRIPT, str(folder), str(ROWS)]
    run(module("accelerate.commands.launch", *words))


def mainspring(folder: Path) -> None:
    run(module("mainspring.cli", "launch", "--nproc", str(PROCESSES), SCRIPT, str(folder), str(ROWS)))


def mainspring_with_a_file(folder: Path) -> None:
    """For which `accelerate launch` starts one process."""
    (folder / "cpu.yaml").write_text(CPU_FILE)
    words = ["--config", str(folder / "cpu.yaml"), "-m", "tests.distributed.worker_launched", str(folder), str(ROWS)]
    run(module("mainspring.cli", "launch", *words))


def together(starts: list[tuple[list[str], dict[str, str]]]) -> None:
    """Run commands at the same time, each with variables of its own."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = [
        subprocess.Popen(command, env=environment(**variables), cwd=ROOT, **pipes) for command, variables in starts
    ]
    try:
        printed = [process.communicate(timeout=HANG_S)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(printed)


def one_by_one(folder: Path, variables: Callable[[int], dict[str, str]]) -> None:
    """Start each process by itself, as the daemons of SLURM and MPI do."""
    command = [sys.executable, SCRIPT, str(folder), str(ROWS)]
    together([(command, variables(rank)) for rank in range(PROCESSES)])


def slurm(folder: Path) -> None:
    """Two tasks on two machines; that they are one here is what `srun` cannot know."""

    def variables(rank: int) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": str(rank),
            "SLURM_NTASKS": str(PROCESSES),
            "SLURM_TASKS_PER_NODE": f"1(x{PROCESSES})",
            "SLURM_NODELIST": "no-such-machine[1-2]",
            "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
        }

    one_by_one(folder, variables)


def mpi(folder: Path) -> None:
    port = free_port()

    def variables(rank: int) -> dict[str, str]:
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
        sizes = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
        world = {name: str(rank) for name in names} | {name: str(PROCESSES) for name in sizes}
        return {**world, "MASTER_PORT": port}

    one_by_one(folder, variables)


def two_machines(folder: Path) -> None:
    """A file for two machines, on each of them; its precision, which needs GPUs, is overruled."""
    if reason := ranks.why_no_hosts():
        pytest.skip(reason)
    with ranks.two_hosts() as hosts:
        (folder / "two.yaml").write_text(TWO_MACHINES_FILE.format(address=hosts[0].address))
        flags = ["--config", str(folder / "two.yaml"), "--mixed-precision", "no"]
        script = [SCRIPT, str(folder), str(ROWS)]
        starts = []
        for rank, host in enumerate(hosts):
            words = module("mainspring.cli", "launch", *flags, "--node-rank", str(rank), *script)
            starts.append((host.command(*words), {"GLOO_SOCKET_IFNAME": host.interface}))
        together(starts)


def notebook(folder: Path) -> None:
    code = NOTEBOOK.format(out=str(folder), rows=ROWS, processes=PROCESSES, port=free_port())
    run([sys.executable, "-c", code])


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


LAUNCHERS = (torchrun, accelerate, mainspring, mainspring_with_a_file, two_machines, slurm, mpi, notebook)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The script in plain Python, with the batch of all processes."""
    folder = tmp_path_factory.mktemp("plain")
    plain(folder)
    facts: dict[str, Any] = json.loads((folder / "rank0.json").read_text())
    return facts


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: launcher.__name__)
def test_the_script_runs_unchanged(launcher: Callable[[Path], None], alone: dict[str, Any], tmp_path: Path) -> None:
    launcher(tmp_path)
    assert len(list(tmp_path.glob("rank*.json"))) == PROCESSES
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(PROCESSES))
    own_machines = launcher in (slurm, two_machines)
    for rank, facts in enumerate((first, second)):
        assert facts["world_size"] == PROCESSES
        assert facts["wrapper"] == "DistributedDataParallel"
        assert (facts["rank"], facts["local_rank"]) == (rank, 0 if own_machines else rank)
        assert facts["should_log"] == (rank == 0 or own_machines)  # log_on_each_node
    assert first["entered"] == ["entered-0"]  # main_process_first(local=False)
    assert second["entered"] == ["entered-0", "entered-1"]
    assert first["losses"] == second["losses"]
    assert len(first["losses"]) == len(alone["losses"]) == 6
    assert first["losses"] == pytest.approx(alone["losses"], rel=2e-5)
    assert (alone["world_size"], alone["wrapper"]) == (1, "Line")


def test_a_file_for_fsdp_shards_the_model(alone: dict[str, Any], tmp_path: Path) -> None:
    """On the CPU too, where Accelerate's own wrapping becomes plain data parallelism without a word."""
    (tmp_path / "fsdp.yaml").write_text(FSDP_FILE)
    words = ["--config_file", str(tmp_path / "fsdp.yaml"), SCRIPT, str(tmp_path), str(ROWS)]
    run(module("accelerate.commands.launch", *words))
    for rank in range(PROCESSES):
        facts = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert facts["world_size"] == PROCESSES
        assert facts["wrapper"] == "FSDPLine"
        assert facts["losses"] == pytest.approx(alone["losses"], rel=2e-5)


def test_one_process_of_two_is_refused(tmp_path: Path) -> None:
    words = ["--cpu", "--num_processes", str(PROCESSES), SCRIPT, str(tmp_path), str(ROWS)]
    printed = run(module("accelerate.commands.launch", *words), status=1)
    assert "accelerate launch was asked for several processes and started one" in printed
    assert list(tmp_path.glob("rank*.json")) == []


# ---- how a job ends ----


def test_a_signal_reaches_every_process_and_the_job_can_be_continued(tmp_path: Path) -> None:
    """SIGUSR1, which SLURM sends: torchrun by itself would end, and leave its processes behind."""
    words = ["launch", "--nproc", str(PROCESSES), SCRIPT, str(tmp_path), str(ROWS), "1000000"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(module("mainspring.cli", *words), env=environment(), cwd=ROOT, **pipes) as launcher:
        try:
            assert launcher.stdout is not None
            printed = []
            for line in launcher.stdout:
                printed.append(line)
                if "training" in line:
                    break
            workers = psutil.Process(launcher.pid).children()
            launcher.send_signal(signal.SIGUSR1)
            printed.append(launcher.communicate(timeout=HANG_S)[0])
        finally:
            launcher.kill()
    assert launcher.returncode == EXIT_RESUMABLE, "".join(printed)
    assert len(workers) == PROCESSES
    assert not any(worker.is_running() for worker in workers)
    assert "stopped with a checkpoint" in printed[-1]
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1


FAILING = """
import os, sys, time
from datetime import timedelta
import torch
from torch import distributed as dist
attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
time.sleep(2 * attempt * (rank == 0))  # the other one looks for it while only the first start's address is there
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
total = torch.ones(1)
dist.all_reduce(total)
os.write(1, f"attempt {attempt} of {int(total)} {sys.argv[1]}\\n".encode())  # as one, between the other's lines
os._exit(int(sys.argv[2]) if rank == 1 and attempt < 1 else 0)
"""


@pytest.mark.parametrize(
    ("restarts", "code", "status"),
    [("0", "3", 3), ("1", "3", 0), ("1", str(EXIT_RESUMABLE), EXIT_RESUMABLE)],
    ids=["failed", "restarted", "stopped"],
)
def test_the_exit_code_is_that_of_the_job(restarts: str, code: str, status: int, tmp_path: Path) -> None:
    """Processes that start anew find each other; those that were asked to stop, and saved, do not start anew."""
    (tmp_path / "fail.py").write_text(FAILING)
    script = [str(tmp_path / "fail.py"), "--nproc", code]
    words = ["launch", "--nproc", str(PROCESSES), "--max-restarts", restarts, *script]
    printed = run(module("mainspring.cli", *words), status=status)
    assert f"attempt 0 of {PROCESSES} --nproc" in printed
    assert printed.count(f"attempt 1 of {PROCESSES}") == (PROCESSES if status == 0 else 0)
    assert ("process 1 ended with status 3" in printed) == (status == 3)
    assert ("stopped with a checkpoint" in printed) == (status == EXIT_RESUMABLE)
