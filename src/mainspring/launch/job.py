"""What is started: how many processes, where they meet, and in which environment.

`Wanted` is what the command line says. A configuration file of Accelerate's fills in what it leaves open, and `Job` is
what comes of both, complete.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mainspring.arguments.launchers import DEFAULT_PORT
from mainspring.arguments.typed import truth
from mainspring.errors import OptionError, Problem
from mainspring.launch import accelerate_file
from mainspring.launch.machine import Devices, find_devices, threads_per_process

if TYPE_CHECKING:
    from accelerate.commands.config.config_args import ClusterConfig


@dataclass(frozen=True)
class Wanted:
    """What was said on the command line; None where nothing was.

    Attributes:
        script: A file, or the name of a module.
        words: The script's own arguments.
        is_module: Whether `script` names a module, as with `python -m`.
        nproc: Processes on this machine.
        nnodes: Machines, as a number or as MIN:MAX.
        node_rank: Index of this machine.
        master_addr: Machine of the first process.
        master_port: A free port there.
        rdzv_backend: How the machines find each other: "static" or "c10d".
        rdzv_endpoint: HOST:PORT at which they do.
        rdzv_id: Name of the job there.
        rdzv_conf: Further settings of torch's, as KEY=VALUE,...
        local_addr: Address of this machine.
        max_restarts: How often all processes are started anew after a failure.
        shutdown_timeout: Seconds that processes have for ending after a signal.
        config: An Accelerate configuration file.
        reads_default_config: Whether the file that `accelerate config` wrote is taken where `config` is None.
        mixed_precision: "no", "bf16" or "fp16".
        cpu: Whether to stay on the CPU.
    """

    script: str
    words: Sequence[str] = ()
    is_module: bool = False
    nproc: int | None = None
    nnodes: str | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str | None = None
    rdzv_conf: str | None = None
    local_addr: str | None = None
    max_restarts: int = 0
    shutdown_timeout: int | None = None
    config: str | None = None
    reads_default_config: bool = True
    mixed_precision: str | None = None
    cpu: bool = False


@dataclass(frozen=True)
class Meeting:
    """Where and how the machines of a job find each other.

    Attributes:
        nnodes: Fewest and most machines.
        rank: Index of this one; None where they are numbered as they come.
        backend: "static", or the name of a rendezvous of torch's.
        endpoint: HOST:PORT; None on a single machine, where a free port is found.
    """

    nnodes: tuple[int, int] = (1, 1)
    rank: int | None = None
    backend: str = "static"
    endpoint: str | None = None


@dataclass(frozen=True)
class Job:
    """A start, complete.

    Attributes:
        wanted: What was said.
        nproc: Processes on this machine.
        meeting: Where they find those of other machines.
        environment: Variables that they have beside those of this process.
        lines: What to tell the user about it.
    """

    wanted: Wanted
    nproc: int
    meeting: Meeting
    environment: dict[str, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def job_of(wanted: Wanted) -> Job:
    """Complete what was said.

    Raises:
        OptionError: It does not go together, or not with this machine.
        OSError: The script or the configuration file is not there.
        ValueError: The configuration file cannot be read, or Accelerate refuses it.
    """
    if not wanted.is_module and not Path(wanted.script).is_file():
        raise FileNotFoundError(f"{wanted.script}: no such file; with -m, the name of a module is taken")
    path = _config_path(wanted)
    config = None if path is None else accelerate_file.read(path)
    cpu = wanted.cpu or (config is not None and truth(str(config.use_cpu)) is True)
    cpu = cpu or truth(os.environ.get("ACCELERATE_USE_CPU", "")) is True
    devices = find_devices(cpu, None if config is None else config.gpu_ids)
    meeting = _meeting(wanted, config)
    nproc = _processes_here(wanted, config, meeting, devices)
    environment = _environment(wanted, path, config, meeting, nproc)
    if cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    environment |= threads_per_process(nproc) | _restarts_apart(wanted, meeting)
    lines = _told(path, meeting, nproc, devices, wanted.nproc is None and config is None)
    return Job(wanted, nproc, meeting, environment, lines)


def _config_path(wanted: Wanted) -> str | None:
    """The file to read. As with `accelerate launch`, `--cpu` leaves a default file aside, which is for the GPUs."""
    if wanted.config is not None:
        return wanted.config
    return accelerate_file.default_file() if wanted.reads_default_config and not wanted.cpu else None


# ---- machines ----


def _meeting(wanted: Wanted, config: ClusterConfig | None) -> Meeting:
    if wanted.rdzv_endpoint is not None and (wanted.master_addr or wanted.master_port):
        why = "--master-addr or --master-port says where they meet, too"
        raise OptionError([Problem("rdzv_endpoint", wanted.rdzv_endpoint, why, "give one of the two")])
    nnodes = _nnodes(wanted.nnodes or str(1 if config is None else config.num_machines))
    said = wanted.rdzv_backend or (None if config is None else config.rdzv_backend)
    is_elastic = nnodes[0] != nnodes[1]
    backend = said or ("c10d" if is_elastic or (wanted.rdzv_endpoint and wanted.node_rank is None) else "static")
    if nnodes == (1, 1):
        return _alone(wanted, config, backend)
    if is_elastic and backend == "static":
        if wanted.rdzv_backend is not None:
            why = f"needs as many machines as are there, and nnodes={wanted.nnodes} leaves that open"
            raise OptionError([Problem("rdzv_backend", backend, why, "use c10d")])
        backend = "c10d"  # a file says static by default
    endpoint = _endpoint(wanted, config)
    rank = wanted.node_rank if wanted.node_rank is not None or config is None else int(config.machine_rank)
    problems = []
    if endpoint is None:
        why = "several machines need to know where they meet"
        problems.append(
            Problem("nnodes", wanted.nnodes or nnodes[1], why, "give --master-addr HOST (--master-port PORT)")
        )
    if backend == "static" and rank is None:
        why = "nobody says which of the machines this is"
        problems.append(Problem("nnodes", wanted.nnodes or nnodes[1], why, "give --node-rank, or --rdzv-backend c10d"))
    if backend == "static" and rank is not None and not 0 <= rank < nnodes[1]:
        problems.append(Problem("node_rank", rank, f"there are {nnodes[1]} machines", "count them from 0"))
    if problems:
        raise OptionError(problems)
    return Meeting(nnodes, rank if backend == "static" else None, backend, endpoint)


def _alone(wanted: Wanted, config: ClusterConfig | None, backend: str) -> Meeting:
    """One machine: its processes meet at a free port, unless somebody says where; a file's address is for several."""
    if wanted.node_rank:
        raise OptionError([Problem("node_rank", wanted.node_rank, "there is one machine", "give --nnodes too")])
    port = wanted.master_port or (None if config is None else config.main_process_port)
    said = f"{wanted.master_addr or '127.0.0.1'}:{port or DEFAULT_PORT}" if wanted.master_addr or port else None
    return Meeting(backend=backend, rank=0, endpoint=wanted.rdzv_endpoint or said)


def _nnodes(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise OptionError([Problem("nnodes", text, "is no number of machines", "write N, or MIN:MAX")])
    return low, high


def _endpoint(wanted: Wanted, config: ClusterConfig | None) -> str | None:
    if wanted.rdzv_endpoint is not None:
        return wanted.rdzv_endpoint
    of_file = (None, None) if config is None else (config.main_process_ip, config.main_process_port)
    host, port = wanted.master_addr or of_file[0], wanted.master_port or of_file[1] or DEFAULT_PORT
    return None if host is None else f"{host}:{port}"


# ---- processes ----


def _processes_here(wanted: Wanted, config: ClusterConfig | None, meeting: Meeting, devices: Devices) -> int:
    """What the flag says, else the file's share of this machine, else one for each device."""
    nproc = wanted.nproc or _share_of_file(config, meeting) or max(1, devices.count)
    if 0 < devices.count < nproc:
        why = f"there are {devices.count} of kind {devices.kind} here, and each process needs one of its own"
        raise OptionError([Problem("nproc", nproc, why, "start fewer, or use --cpu")])
    return nproc


def _share_of_file(config: ClusterConfig | None, meeting: Meeting) -> int | None:
    if config is None or config.num_processes == -1:
        return None
    machines = meeting.nnodes[1]
    share, rest = divmod(int(config.num_processes), machines)
    if rest or not share:
        why = f"cannot be shared by {machines} machines: it counts the processes of all of them"
        raise OptionError([Problem("num_processes", config.num_processes, why, f"use a multiple of {machines}")])
    return share


def _environment(
    wanted: Wanted, path: str | None, config: ClusterConfig | None, meeting: Meeting, nproc: int
) -> dict[str, str]:
    if path is None or config is None:
        return {} if wanted.mixed_precision is None else {"ACCELERATE_MIXED_PRECISION": wanted.mixed_precision}
    host, _, port = (meeting.endpoint or "").rpartition(":")
    flags = {
        "num_processes": nproc * meeting.nnodes[1],
        "num_machines": meeting.nnodes[1],
        "machine_rank": meeting.rank,
        "main_process_ip": host or None,
        "main_process_port": port or 0,  # any free one: it is torch's launcher that looks for it
        "mixed_precision": wanted.mixed_precision,
        "num_cpu_threads_per_process": 1,  # or Accelerate looks for a number, and warns of it: `machine` has one
    }
    return accelerate_file.environment(path, config, flags)


def _restarts_apart(wanted: Wanted, meeting: Meeting) -> dict[str, str]:
    """Let the processes of each new start meet at a store of their own.

    The one of the launchers, which torch would take, lasts as long as they do: processes would find what those of an
    earlier start have written, and look for others that are gone.
    """
    may_start_anew = wanted.max_restarts > 0 or meeting.nnodes[0] != meeting.nnodes[1]
    if may_start_anew and meeting.backend == "static" and meeting.nnodes != (1, 1):
        why = "with a static rendezvous, machines do not hear of each other's new starts, and wait in vain"
        raise OptionError([Problem("max_restarts", wanted.max_restarts, why, "add --rdzv-backend c10d")])
    return {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if may_start_anew else {}


def _told(path: str | None, meeting: Meeting, nproc: int, devices: Devices, is_default: bool) -> tuple[str, ...]:
    """What a user would otherwise have to guess."""
    where = f"on {devices.kind}" if devices.count else f"on the CPU ({devices.why_none})"
    processes = f"{nproc} process{'es' if nproc > 1 else ''} {where}"
    more = "; --nproc N starts more" if is_default and not devices.count else ""
    lines = [] if path is None else [f"configuration: {path}"]
    if meeting.nnodes == (1, 1):
        return (*lines, f"{processes}{more}")
    low, high = meeting.nnodes
    machines = str(high) if low == high else f"{low} to {high}"
    this = "numbered as they come" if meeting.rank is None else f"this is number {meeting.rank}"
    return (*lines, f"{machines} machines ({this}), each with {processes}; they meet at {meeting.endpoint}{more}")
