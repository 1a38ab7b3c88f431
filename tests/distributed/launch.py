"""Start a worker module under torchrun and say what went wrong when it did."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

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
