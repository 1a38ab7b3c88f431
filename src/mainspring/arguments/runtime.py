"""Third phase, on first use: the device and the process group of this run."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mainspring.arguments.spellings import warn
from mainspring.arguments.typed import truth
from mainspring.errors import OptionError, Problem

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

_SET_BY_LAUNCHERS = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torch needs besides WORLD_SIZE to find the other processes."""


@dataclass(frozen=True)
class Place:
    """Where this process stands. It is looked up once per arguments: a later choice of device changes nothing here.

    Attributes:
        device: What it computes on.
        world_size: Number of processes.
        rank: Index of this one among all.
        local_rank: Index of this one on its machine.
    """

    device: torch.device
    world_size: int
    rank: int
    local_rank: int


def find_place(
    *, use_cpu: bool, backend: str | None, timeout_s: int, local_rank: int, configured: bool = False
) -> Place:
    """Join the process group that the launcher asked for, and choose the device. Arguments as of `processes`."""
    state = processes(
        use_cpu=use_cpu, backend=backend, timeout_s=timeout_s, local_rank=local_rank, configured=configured
    )
    if state.device.type == "cuda" and "LOCAL_RANK" not in os.environ:
        _say_that_gpus_are_idle()
    return Place(_with_index(state.device), state.num_processes, state.process_index, state.local_process_index)


def _with_index(device: torch.device) -> torch.device:
    """`cuda` is `cuda:0` to a tensor that lies there: devices are compared."""
    import torch

    has_none = device.type == "cuda" and getattr(device, "index", None) is None
    return torch.device("cuda", torch.cuda.current_device()) if has_none else device


@functools.cache
def _say_that_gpus_are_idle() -> None:
    import torch

    count = torch.cuda.device_count()
    if count > 1:
        warn(f"{count} GPUs are visible and one is used: start with torchrun --nproc_per_node {count}", UserWarning)


def processes(
    *, use_cpu: bool, backend: str | None, timeout_s: int, local_rank: int, configured: bool = False
) -> PartialState:
    """Accelerate's state of this process, made now or found.

    Args:
        use_cpu: Stay on the CPU.
        backend: Backend between processes; None for the device's own.
        timeout_s: Seconds after which a collective counts as failed.
        local_rank: What a launcher passed as an argument, or -1; the environment wins.
        configured: Take the state that a script made before, whatever it is, and make none.

    Raises:
        OptionError: A state that was made before is to be taken, and there is none.
        RuntimeError: The world that came about is not the one that was asked for.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    state = _configured() if configured else _formed(asked, use_cpu, backend, timeout_s, local_rank)
    if asked > 1 and state.num_processes != asked:
        raise RuntimeError(
            f"the launcher set WORLD_SIZE={asked}, but this process sees a world of {state.num_processes}: training "
            "would run as separate jobs that each report success; start it with torchrun"
        )
    return state


def _configured() -> PartialState:
    from accelerate import PartialState

    if not PartialState._shared_state:
        why = "no state of Accelerate was made before"
        fix = "make an accelerate.Accelerator or PartialState first, or leave it out"
        raise OptionError([Problem("accelerator_config", {"use_configured_state": True}, why, fix)])
    return PartialState()


def _formed(asked: int, use_cpu: bool, backend: str | None, timeout_s: int, local_rank: int) -> PartialState:
    from accelerate import PartialState

    cpu = use_cpu or truth(os.environ.get("ACCELERATE_USE_CPU", "")) is True or not _has_accelerator()
    if PartialState._shared_state and not _fits(PartialState(), cpu, asked):
        PartialState._reset_state()
    keywords: dict[str, Any] = {"timeout": timedelta(seconds=timeout_s)}
    if asked > 1:
        _find_the_others(asked)
        if local_rank >= 0:
            os.environ.setdefault("LOCAL_RANK", str(local_rank))
        if backend is not None or cpu:
            keywords["backend"] = backend or "gloo"  # a torch that was built with MPI would take that
    try:
        return PartialState(cpu=cpu, **keywords)
    except BaseException:
        PartialState._reset_state()  # what it had noted before it failed would pass for a state
        raise


def _fits(state: PartialState, cpu: bool, asked: int) -> bool:
    """Whether a state that was found serves this run.

    An earlier run in this process may have been on the other kind of device. And a script may have asked Accelerate
    before: on a machine without an accelerator that gives each process a world of its own, until a group is formed.
    """
    import torch

    alone = asked > 1 and state.num_processes == 1 and not torch.distributed.is_initialized()
    return (state.device.type == "cpu") == cpu and not alone


def _find_the_others(asked: int) -> None:
    """Waiting for processes that nobody started would end with a timeout, after half an hour."""
    import torch

    missing = [name for name in _SET_BY_LAUNCHERS if name not in os.environ]
    if missing and not torch.distributed.is_initialized():
        raise RuntimeError(
            f"WORLD_SIZE={asked} is set, but {', '.join(missing)} is not: no launcher started the other processes; "
            "start with torchrun, or unset WORLD_SIZE"
        )


def _has_accelerator() -> bool:
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return True
    return any(hasattr(torch, kind) and getattr(torch, kind).is_available() for kind in ("xpu", "npu"))


def check_precision(*, mixed_precision: str, tf32: bool | None, device_type: str) -> None:
    """Refuse a number format that the device does not have.

    Args:
        mixed_precision: "bf16", "fp16" or "no".
        tf32: Whether TF32 was asked for.
        device_type: Such as "cpu" or "cuda".

    Raises:
        OptionError: Naming the option and the device.
    """
    import torch

    problems = []
    if mixed_precision == "fp16" and device_type == "cpu":
        problems.append(Problem("fp16", True, "needs a GPU, and this run is on the CPU", "use bf16=True"))
    if mixed_precision == "bf16" and device_type == "cuda" and not torch.cuda.is_bf16_supported():
        problems.append(Problem("bf16", True, "this GPU has no bfloat16", "use fp16=True"))
    if tf32 and not has_tf32(device_type):
        where = "this GPU" if device_type == "cuda" else device_type
        problems.append(Problem("tf32", True, f"{where} has no TF32", "leave it out"))
    if problems:
        raise OptionError(problems)


def has_tf32(device_type: str) -> bool:
    """Whether this device computes in TF32: NVIDIA's from Ampere on."""
    import torch

    return device_type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)


def apply_tf32(tf32: bool | None, device_type: str) -> None:
    """Let float32 matrix products use TF32, or not; None, or a device without it, leaves torch's setting."""
    import torch

    if tf32 is not None and has_tf32(device_type):
        # These flags are older than torch.backends.fp32_precision, but all others can be read beside them; beside that
        # one, torch.get_float32_matmul_precision, which compiling calls, is an error.
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
