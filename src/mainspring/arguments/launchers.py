"""What launchers leave in the environment: torch's own words, SLURM's, MPI's, and the marks of a start that went wrong.

torchrun tells each process its place in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ... `srun` and `mpirun` say the same
in words of their own. Here they are translated; no variable is set, and nothing is asked of torch.
"""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, repeat
from types import MappingProxyType

from mainspring.arguments import not_yet
from mainspring.arguments.typed import truth
from mainspring.errors import NotAvailableError, Problem

DEFAULT_PORT = "29500"
"""Where processes meet when nobody says: torch's and Accelerate's own choice."""

_NO_TASK_FROM = 0xFFFFFFF0
"""SLURM numbers the steps that `srun` starts from 0; the batch script and interactive shells have numbers from here on."""

_SHELLS = frozenset({"bash", "sh", "zsh", "fish", "interactive"})
"""Names of SLURM jobs and steps in which somebody types."""


def torch_words(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of torch's that the launcher of this process left unsaid; none where it was started alone.

    Args:
        environ: The environment of the process. What it says in torch's own words is kept.

    Raises:
        RuntimeError: A launcher announced a world, but not enough to join it.
    """
    if {"RANK", "WORLD_SIZE"} <= set(environ):
        return {}
    for read in _READERS:
        world = read(environ)
        if world and environ.get("WORLD_SIZE", world["WORLD_SIZE"]) == world["WORLD_SIZE"]:
            return {name: value for name, value in world.items() if not environ.get(name)}
    return {}


# ---- SLURM ----


def _slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """The place of a task that `srun` started."""
    size = _slurm_tasks(environ)
    if size < 2 or not _is_task(environ):
        return {}
    nodes = _first_of(environ, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    local = {"LOCAL_RANK": environ["SLURM_LOCALID"]} if "SLURM_LOCALID" in environ else {}
    here = _tasks_of_this_node(environ, size)
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": str(size),
        **local,
        **({"LOCAL_WORLD_SIZE": str(here)} if here else {}),
        "MASTER_ADDR": "127.0.0.1" if here == size else _slurm_address(environ, nodes),
        "MASTER_PORT": _slurm_port(environ),
    }


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    said = _first_of(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    return int(said) if said.isdecimal() and environ.get("SLURM_PROCID", "").isdecimal() else 1


def _is_task(environ: Mapping[str, str]) -> bool:
    """Whether `srun` started this process, rather than a batch script or somebody at a prompt inside the job."""
    return not _is_batch_script(environ) and not _is_interactive(environ)


def _is_interactive(environ: Mapping[str, str]) -> bool:
    """Whether somebody types here. What `srun` starts from a prompt inherits these marks, but not the terminal."""
    is_marked = "SLURM_PTY_PORT" in environ or environ.get("SLURM_JOB_NAME") in _SHELLS
    is_task_itself = environ.get("SLURM_TASK_PID") == str(os.getpid())
    return is_marked and not is_task_itself and os.isatty(0)


def _is_batch_script(environ: Mapping[str, str]) -> bool:
    step = _first_of(environ, "SLURM_STEP_ID", "SLURM_STEPID")
    if step.isdecimal():
        return int(step) >= _NO_TASK_FROM
    started_by_slurm = "SLURM_TASK_PID" in environ
    return started_by_slurm and not {"SLURM_STEP_NUM_TASKS", "SLURM_LAUNCH_NODE_IPADDR"} & set(environ)


def _slurm_address(environ: Mapping[str, str], nodes: str) -> str:
    """The machine of the first task, which is the first of the list; where its name means nothing, what `srun` says."""
    first = first_host(nodes)
    address = environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not first or (address and not _is_known(first)):
        if not address:
            raise RuntimeError(
                "SLURM started several tasks, but says of no machine: set MASTER_ADDR to the first one's"
            )
        return address
    return first


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _slurm_port(environ: Mapping[str, str]) -> str:
    """The same for all tasks of a step, another for another step; below the ports that systems give out themselves."""
    job = _first_of(environ, "SLURM_JOB_ID", "SLURM_JOBID")
    if not job:
        return DEFAULT_PORT
    step = _first_of(environ, "SLURM_STEP_ID", "SLURM_STEPID")
    return str(15000 + zlib.crc32(f"{job}.{step}".encode()) % 15000)


def _tasks_of_this_node(environ: Mapping[str, str], size: int) -> int | None:
    """How many tasks share this machine, None where nothing says."""
    counts = counts_of(_first_of(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    node = environ.get("SLURM_NODEID", "0")
    if sum(counts) == size and node.isdecimal() and int(node) < len(counts):
        return counts[int(node)]
    nodes = _first_of(environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
    return size if nodes == "1" else None


def first_host(nodes: str) -> str:
    """The first machine of a list as SLURM writes it: `node01` of `node[01-03,7],login`."""
    entry = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", nodes.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", entry[0]) if entry else ""


def counts_of(tasks: str) -> list[int]:
    """The tasks of each machine: `[2, 2, 1]` of `2(x2),1`."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks)
    return list(chain.from_iterable(repeat(int(count), int(times or 1)) for count, times in found))


# ---- MPI ----


def _open_mpi(environ: Mapping[str, str]) -> dict[str, str]:
    return _of_mpi(environ, "OMPI_COMM_WORLD_{}", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")


def _mvapich(environ: Mapping[str, str]) -> dict[str, str]:
    return _of_mpi(environ, "MV2_COMM_WORLD_{}", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE")


def _pmi(environ: Mapping[str, str]) -> dict[str, str]:
    """Intel's MPI and MPICH."""
    return _of_mpi(environ, "PMI_{}", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


def _of_mpi(environ: Mapping[str, str], names: str, local_rank: str, local_size: str) -> dict[str, str]:
    size, rank = (environ.get(names.format(what), "") for what in ("SIZE", "RANK"))
    if not (size.isdecimal() and rank.isdecimal()) or int(size) < 2:
        return {}
    here = environ.get("LOCAL_WORLD_SIZE") or environ.get(local_size, "")
    place = environ.get("LOCAL_RANK") or environ.get(local_rank, "")
    missing = [name for name, value in (("LOCAL_RANK", place), ("LOCAL_WORLD_SIZE", here)) if not value]
    if here != size and "MASTER_ADDR" not in environ:
        missing.append("MASTER_ADDR")
    if missing:
        raise RuntimeError(
            f"{names.format('SIZE')}={size} says that MPI started {size} processes, but {', '.join(missing)} cannot be "
            "told from its variables: set them for each process (MASTER_ADDR is the machine of the first), or start with "
            "`mainspring launch` or torchrun"
        )
    world = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": place, "LOCAL_WORLD_SIZE": here}
    return {**world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": DEFAULT_PORT}


# MPI may have been started inside a SLURM job, where `srun` started its daemons: it knows better. PMI's variables may
# also be SLURM's own, which says more in its other ones.
_READERS: tuple[Callable[[Mapping[str, str]], dict[str, str]], ...] = (_open_mpi, _mvapich, _slurm, _pmi)


# ---- what went wrong ----


def refuse_one_of_several(environ: Mapping[str, str]) -> None:
    """Notice that `accelerate launch` was to start several processes, and started this one only.

    It does so without an error when no GPUs are found, or with `--cpu`: it notes where the others would be met, and then
    runs the script as it is.

    Raises:
        RuntimeError: It did.
    """
    marks = {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "MASTER_ADDR"}
    if marks <= set(environ) and not {"WORLD_SIZE", "LOCAL_RANK"} & set(environ):
        raise RuntimeError(
            "accelerate launch was asked for several processes and started one: training would not be what was asked "
            "for. Start with `mainspring launch --nproc N`, with torchrun, or with ACCELERATE_USE_CPU=true accelerate "
            "launch --multi_gpu; for one process, use --num_processes 1, and unset MASTER_ADDR"
        )


_MACHINERY = MappingProxyType({"ACCELERATE_USE_DEEPSPEED": "deepspeed", "ACCELERATE_USE_MEGATRON_LM": None})
"""Variables by which `accelerate launch` asks for an engine, and the options that ask for the same."""


def refuse_what_no_engine_does(environ: Mapping[str, str]) -> None:
    """Notice that a launcher asked for an engine that is not here: plain data parallelism would train in its place.

    Raises:
        NotAvailableError: It did.
    """
    for variable, option in _MACHINERY.items():
        is_here = option is not None and option not in not_yet.OPTIONS
        if truth(environ.get(variable, "")) is True and not is_here:
            why = "this version has no such engine"
            fix = "take it out of the configuration that the run is launched with"
            raise NotAvailableError([Problem(variable, environ[variable], why, fix)])


def left_alone(environ: Mapping[str, str]) -> str | None:
    """What to say to a run that is one process in a SLURM job of several tasks; None where there is nothing to say."""
    size = _slurm_tasks(environ)
    if size < 2 or not _is_batch_script(environ) or _is_interactive(environ):
        return None
    return (
        f"the SLURM job has {size} tasks, and the batch script itself started this run, as one process: start it with "
        "`srun python ...` to train with all of them"
    )


def _first_of(environ: Mapping[str, str], *names: str) -> str:
    said: Iterable[str] = (environ.get(name, "") for name in names)
    return next(filter(None, said), "")
