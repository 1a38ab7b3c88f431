"""Start a worker module under torchrun and say what went wrong when it did."""

from __future__ import annotations

import os
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
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*command, "-m", module, *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{module} failed under torchrun:\n{done.stdout[-6000:]}"
