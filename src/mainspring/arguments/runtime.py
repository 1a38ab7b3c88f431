"""Third phase, on first use: the device and the process group of this run."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mainspring.errors import OptionError, Problem

if TYPE_CHECKING:
    from accelerate import PartialState


def processes(*, use_cpu: bool, backend: str | None, timeout_s: int, local_rank: int) -> PartialState:
    """Join the process group that the launcher asked for, and choose the device.

    Args:
        use_cpu: Stay on the CPU.
        backend: Backend between processes; None for the device's own.
        timeout_s: Seconds after which a collective counts as failed.
        local_rank: What a launcher passed as an argument, or -1; the environment wins.

    Raises:
        RuntimeError: The world that came about is not the one that was asked for.
    """
    from accelerate import PartialState

    if local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    cpu = use_cpu or not _has_accelerator()
    existing = PartialState._shared_state
    if existing and (existing.get("_cpu", cpu) != cpu):
        PartialState._reset_state()
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    keywords: dict[str, Any] = {}
    if asked > 1 and not PartialState._shared_state:
        keywords["timeout"] = timedelta(seconds=timeout_s)
        if backend is not None:
            keywords["backend"] = backend
    state = PartialState(cpu=cpu, **keywords)
    if state.num_processes != asked:
        raise RuntimeError(
            f"the launcher set WORLD_SIZE={asked}, but this process sees a world of {state.num_processes}: training "
            "would run as separate jobs that each report success; start it with torchrun"
        )
    return state


def _has_accelerator() -> bool:
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return True
    return any(hasattr(torch, kind) and getattr(torch, kind).is_available() for kind in ("xpu", "npu"))


def check_precision(*, bf16: bool, fp16: bool, tf32: bool | None, device_type: str) -> None:
    """Refuse a number format that the device does not have.

    Raises:
        OptionError: Naming the option and the device.
    """
    import torch

    problems = []
    if fp16 and device_type == "cpu":
        problems.append(Problem("fp16", True, "needs a GPU, and this run is on the CPU", "use bf16=True"))
    if bf16 and device_type == "cuda" and not torch.cuda.is_bf16_supported():
        problems.append(Problem("bf16", True, "this GPU has no bfloat16", "use fp16=True"))
    if tf32 and device_type != "cuda":
        problems.append(Problem("tf32", True, f"{device_type} has no TF32", "leave it out"))
    if problems:
        raise OptionError(problems)


def apply_tf32(tf32: bool | None) -> None:
    """Let float32 matrix products use TF32, or not; None leaves torch's setting."""
    import torch

    if tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
