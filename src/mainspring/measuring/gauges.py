"""What tells how much memory is in use: counters of a device, and a thread that looks again and again."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

from mainspring.errors import NotAvailableError, Problem

_INTERVAL = 0.001
"""Seconds between two samples."""


class Gauge(Protocol):
    """Bytes in use, now and at most.

    Attributes:
        name: What the keys of a report call it.
    """

    name: str

    def used(self) -> int:
        """Bytes in use now."""

    def watch(self) -> None:
        """Begin to look for the peak."""

    def peak(self) -> int:
        """The most bytes in use since `watch`, which ends with it."""

    def give_back(self) -> None:
        """Free what is cached for later."""


class Sampled:
    """A gauge that nobody counts the peak of: a thread samples it.

    Args:
        name: What reports call it.
        used: Tells how many bytes are in use.
    """

    def __init__(self, name: str, used: Callable[[], int]) -> None:
        self.name = name
        self.used = used
        self._sampling: _Sampling | None = None

    def watch(self) -> None:
        """Begin to sample; one thread at a time."""
        self.peak()
        self._sampling = _Sampling(self.used)
        # Whoever forgets the gauge, as an exception at construction does, ends the thread.
        self._sampling.end_with(self)

    def peak(self) -> int:
        """The largest sample; the thread ends."""
        sampling, self._sampling = self._sampling, None
        return self.used() if sampling is None else sampling.end()

    def give_back(self) -> None:
        """There is no cache."""


class _Sampling:
    """A thread that samples until it is told that it is over."""

    def __init__(self, used: Callable[[], int]) -> None:
        self._over = threading.Event()
        self._with_owner: weakref.finalize[..., Any] | None = None
        self._used = used
        self._peak = used()
        self._thread = threading.Thread(target=self._run, name="mainspring-memory", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(_INTERVAL):
            self._peak = max(self._peak, self._used())

    def end_with(self, owner: object) -> None:
        """End when nobody holds `owner` any more."""
        self._with_owner = weakref.finalize(owner, self._over.set)

    def end(self) -> int:
        """The largest sample, the last of which is taken now."""
        if self._with_owner is not None:
            self._with_owner.detach()
        self._over.set()
        self._thread.join()
        return max(self._peak, self._used())


class Counted:
    """The memory of a device, as its allocator counts it.

    Args:
        counters: Torch's module for the device, such as `torch.cuda`.
        device: The device.
    """

    name = "gpu"

    def __init__(self, counters: Any, device: torch.device) -> None:
        self._counters = counters
        self._device = device

    def used(self) -> int:
        """Bytes of tensors on the device."""
        return int(self._counters.memory_allocated(self._device))

    def watch(self) -> None:
        """Reset the device's highest mark."""
        self._counters.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """The highest mark."""
        return int(self._counters.max_memory_allocated(self._device))

    def give_back(self) -> None:
        """Free the blocks that the allocator keeps for later."""
        self._counters.empty_cache()


def gauges_of(device: torch.device | None) -> list[Gauge]:
    """The gauges of the process, and of `device` where its memory is told; by default that of the accelerator in use."""
    if device is None:
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
    gauges: list[Gauge] = [Sampled("cpu", _resident())]
    counters: Any = getattr(torch, device.type, None)
    if device.type == "mps":
        gauges.append(Sampled("gpu", counters.current_allocated_memory))
    elif device.type != "cpu" and hasattr(counters, "reset_peak_memory_stats"):
        gauges.append(Counted(counters, device))
    return gauges


def _resident() -> Callable[[], int]:
    """What tells how many bytes of RAM this process takes up.

    Raises:
        NotAvailableError: psutil is not installed.
    """
    try:
        import psutil
    except ImportError as error:
        why = "memory is measured by psutil, which is not installed"
        fix = "run pip install psutil, or leave the option out"
        raise NotAvailableError([Problem("skip_memory_metrics", False, why, fix)]) from error
    process = psutil.Process()
    return lambda: int(process.memory_info().rss)
