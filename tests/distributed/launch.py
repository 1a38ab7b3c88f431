"""Start a worker module under torchrun and say what went wrong when it did."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import distributed as dist

from tests.helpers import ranks

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2


def torchrun(module: str, *arguments: str, processes: int = PROCESSES, timeout: float = 600.0) -> None:
    """Run `module` in `processes` processes of one thread each on this machine.

    Args:
        module: Name of the worker module; its `__main__` part is run.
        arguments: Command-line arguments of the worker.
        processes: How many.
        timeout: Seconds after which all of them are killed; only a hang takes this long.

    Raises:
        AssertionError: A process failed; the message ends with what it printed.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*command, "-m", module, *arguments],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{module} failed under torchrun:\n{done.stdout[-6000:]}"


def forked(module: str, *arguments: str, processes: int = PROCESSES, timeout: float = 600.0) -> None:
    """Run `module` as `torchrun` does, in processes that need not import everything anew, which is most of the time of a launch.

    What depends on being started by torchrun, or on what an import does, is for `torchrun`. Arguments and errors are those
    of it.
    """
    with tempfile.TemporaryDirectory() as printed:
        ends = ranks.run(Path(printed), _run_module, module, arguments, environment(), ranks=processes, timeout=timeout)
    for rank, ended in enumerate(ends):
        assert ended.status == 0, f"rank {rank} of {module} failed:\n{ended.text[-6000:]}"


def _run_module(module: str, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    if dist.is_initialized():
        ranks.leave()


def one_process_per_machine(module: str, *arguments: str, machines: int = PROCESSES, timeout: float = 600.0) -> None:
    """Run `module` as on several machines with one process each: every process is the first of its own.

    Arguments and errors are those of `torchrun`.
    """
    for status, text in _alone_together(module, arguments, machines, timeout):
        assert status == 0, f"{module} failed:\n{text[-6000:]}"


def statuses(module: str, *arguments: str, processes: int = PROCESSES, timeout: float = 600.0) -> list[int]:
    """The exit status of each process, with no agent between that ends the others when one fails."""
    return [status for status, _ in _alone_together(module, arguments, processes, timeout)]


def _alone_together(module: str, arguments: tuple[str, ...], machines: int, timeout: float) -> list[tuple[int, str]]:
    """Exit status and output of each of several processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(machines), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**environment(), **world, **address, "RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(machines)
    ]
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, printed, strict=True)]


def environment() -> dict[str, str]:
    """Of a worker of one thread."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
