"""What of this machine decides how many processes to start on it."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Devices:
    """What the processes of this machine compute on.

    Attributes:
        kind: Such as "cuda", or "cpu".
        count: How many there are; 0 on the CPU.
        why_none: Why there are none, in a few words.
    """

    kind: str
    count: int
    why_none: str = ""


def find_devices(cpu: bool, chosen: str | None = None) -> Devices:
    """The devices that a run would find. They are counted, not used.

    Args:
        cpu: Whether to stay on the CPU.
        chosen: Those that a configuration file leaves visible, such as "0,1"; None or "all" for every one.
    """
    import torch

    if cpu:
        return Devices("cpu", 0, "as was asked for")
    if not torch.accelerator.is_available():
        return Devices("cpu", 0, "no GPU was found")
    found = torch.accelerator.current_accelerator()
    count = len(chosen.split(",")) if chosen not in (None, "", "all") and chosen else torch.accelerator.device_count()
    return Devices("cuda" if found is None else found.type, count)


def threads_per_process(nproc: int) -> dict[str, str]:
    """An equal share of the cores for each process, where OMP_NUM_THREADS does not say; one process may have all."""
    if "OMP_NUM_THREADS" in os.environ or nproc == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, _cores() // nproc))}


def _cores() -> int:
    """Cores that this process may use: two threads of one core gain nothing in arithmetic."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)
