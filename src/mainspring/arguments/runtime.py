"""Third phase, on first use: the device and the process group of this run."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mainspring.arguments import launchers, sagemaker
from mainspring.arguments.spellings import warn
from mainspring.arguments.typed import truth
from mainspring.errors import OptionError, Problem, ProcessesError, between_processes

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
        devices: Accelerators that this process drives, 0 on the CPU.
        found_by: Number of the process that looked it up. A copy of that process has a place of its own.
    """

    device: torch.device
    world_size: int
    rank: int
    local_rank: int
    devices: int = 1
    found_by: int = field(default_factory=os.getpid)


def find_place(
    *, use_cpu: bool, backend: str | None, timeout_s: int, local_rank: int, configured: bool = False
) -> Place:
    """Join the process group that the launcher asked for, and choose the device. Arguments as of `processes`."""
    state = processes(
        use_cpu=use_cpu, backend=backend, timeout_s=timeout_s, local_rank=local_rank, configured=configured
    )
    place = _with_index(state.device), state.num_processes, state.process_index, state.local_process_index
    return Place(*place, _driven(state.device.type))


def _driven(kind: str) -> int:
    """How many accelerators this process drives: where no launcher gave it its own, all GPUs that it sees."""
    import torch

    if kind != "cuda" or "LOCAL_RANK" in os.environ:
        return 0 if kind == "cpu" else 1
    count = torch.cuda.device_count()
    if count > 1:
        _say_that_gpus_share_batches(count)
    return max(1, count)


def _with_index(device: torch.device) -> torch.device:
    """`cuda` is `cuda:0` to a tensor that lies there: devices are compared."""
    import torch

    has_none = device.type == "cuda" and getattr(device, "index", None) is None
    return torch.device("cuda", torch.cuda.current_device()) if has_none else device


@functools.cache
def _say_that_gpus_share_batches(count: int) -> None:
    warn(
        f"{count} GPUs are visible to one process, which divides batches of {count} times per_device_train_batch_size "
        f"among them (DataParallel): torchrun --nproc_per_node {count} is faster, and CUDA_VISIBLE_DEVICES=0 uses one",
        UserWarning,
    )


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
        OptionError: A state that was made before is to be taken, and there is none; or the processes had been joined with
            another backend.
        RuntimeError: The world that came about is not the one that was asked for.
    """
    asked = _asked()
    state = _configured() if configured else _formed(asked, use_cpu, backend, timeout_s, local_rank)
    if asked > 1 and state.num_processes != asked:
        raise RuntimeError(
            f"the launcher set WORLD_SIZE={asked}, but this process sees a world of {state.num_processes}: training "
            "would run as separate jobs that each report success; start it with torchrun"
        )
    if asked > 1 and backend is not None:
        _refuse_other_than(backend)
    return state


def _refuse_other_than(backend: str) -> None:
    """Accelerate takes a group that it finds, whatever was asked for."""
    import torch

    found = torch.distributed.get_backend_config()
    if backend not in found:
        why = f"the processes had been joined before, with {found!r}"
        fix = "leave it out, or make no process group before the arguments are first asked for a device"
        raise OptionError([Problem("ddp_backend", backend, why, fix)])


def _asked() -> int:
    """How many processes the launcher of this one started. What it says in other words than torch's is translated."""
    launchers.refuse_what_no_engine_does(os.environ)
    sagemaker.refuse(os.environ)
    os.environ.update(launchers.torch_words(os.environ))
    launchers.refuse_one_of_several(os.environ)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        _say_that_tasks_are_idle()
    return size


@functools.cache
def _say_that_tasks_are_idle() -> None:
    if sentence := launchers.left_alone(os.environ):
        warn(sentence, UserWarning)


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
        if sagemaker.asks_for_data_parallel(os.environ):
            keywords["_use_sagemaker_dp"] = True
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        with named_loss(f"the start, at {place}", os.environ.get("RANK", "0"), asked, timeout_s, _hint_for_agents()):
            return PartialState(cpu=cpu, **keywords)
    except BaseException:
        PartialState._reset_state()  # what it had noted before it failed would pass for a state
        raise


@contextlib.contextmanager
def named_loss(phase: str, rank: int | str, processes: int, timeout_s: int, hint: str = "") -> Iterator[None]:
    """Make of torch's own error between processes one that names the rank and the phase.

    Args:
        phase: What the body does.
        rank: Of this process.
        processes: How many there are.
        timeout_s: Seconds after which a collective counts as failed.
        hint: What may help.

    Raises:
        ProcessesError: The others were lost, or never came.
    """
    try:
        yield
    except RuntimeError as error:
        if not between_processes(error):
            raise
        lost = f"rank {rank} of {processes} lost the other processes in {phase} (ddp_timeout={timeout_s:g} s)"
        raise ProcessesError(f"{lost}: {error}{hint}", phase) from error


def _hint_for_agents() -> str:
    """The store of torch's agents lasts as long as they do: a new start finds there what an earlier one has written."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if not (shared and restarts):
        return ""
    return "; jobs that restart need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment"


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


def check_precision(*, mixed_precision: str, tf32: bool | None, device_type: str, by_launcher: bool = False) -> None:
    """Refuse a number format that the device does not have.

    Args:
        mixed_precision: "bf16", "fp16" or "no"; a launcher may ask for others, which are refused.
        tf32: Whether TF32 was asked for.
        device_type: Such as "cpu" or "cuda".
        by_launcher: Whether a launcher has chosen `mixed_precision`, which no option then says.

    Raises:
        OptionError: Naming the option, or the launcher's variable, and the device.
    """
    import torch

    problems = []
    variable = "ACCELERATE_MIXED_PRECISION"
    named: tuple[str, Any] = (variable, mixed_precision) if by_launcher else (mixed_precision, True)
    if mixed_precision not in ("no", "bf16", "fp16"):
        why = "runs compute in float32, bf16 or fp16"
        problems.append(Problem(variable, mixed_precision, why, "launch with no, bf16 or fp16"))
    if mixed_precision == "fp16" and device_type == "cpu" and not has_fp16_on_cpu():
        fix = "launch with bf16" if by_launcher else "use bf16=True"
        problems.append(Problem(*named, "this CPU, with this release of torch, does not compute in float16", fix))
    if mixed_precision == "bf16" and device_type == "cuda" and not torch.cuda.is_bf16_supported():
        fix = "launch with fp16" if by_launcher else "use fp16=True"
        problems.append(Problem(*named, "this GPU has no bfloat16", fix))
    if tf32 and not has_tf32(device_type):
        where = "this GPU" if device_type == "cuda" else device_type
        problems.append(Problem("tf32", True, f"{where} has no TF32", "leave it out"))
    if problems:
        raise OptionError(problems)


def check_backend(options: Mapping[str, Any], mixed_precision: str) -> None:
    """Refuse what 4.37 could compute half precision with, and nothing does here.

    Args:
        options: Among them what the older options for it were set to: all but `apex` mean torch's own.
        mixed_precision: "no", "bf16" or "fp16".

    Raises:
        OptionError: apex.
    """
    why = "NVIDIA's apex is not used for mixed precision, which torch has itself, with other numbers than its"
    names = ("half_precision_backend", "fp16_backend")
    problems = [Problem(name, "apex", why, "leave it out") for name in names if options.get(name) == "apex"]
    if problems and mixed_precision != "no":
        raise OptionError(problems)


@functools.cache
def has_fp16_on_cpu() -> bool:
    """Whether torch computes in float16 on this CPU, forward and backward, which is tried out on a few numbers."""
    import torch

    inputs = torch.ones(2, 4, requires_grad=True)
    try:
        with torch.autocast("cpu", torch.float16):
            output = torch.nn.functional.linear(inputs, torch.ones(3, 4))
        output.sum().backward()
    except RuntimeError:
        return False
    return output.dtype == torch.float16


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
