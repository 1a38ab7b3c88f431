"""Random streams: seeding them, and carrying their state across a resume."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

_NUMPY_SEEDS = 2**32
"""numpy accepts seeds below this."""


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, numpy and torch on every device.

    Args:
        seed: From 0 to 2**32 - 1.
        deterministic: Also allow torch only algorithms that give the same result each time.

    Raises:
        ValueError: The seed is out of range.
        TypeError: The seed is not an integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed={seed!r}: not an integer; choose one from 0 to {_NUMPY_SEEDS - 1}")
    if not 0 <= seed < _NUMPY_SEEDS:
        raise ValueError(f"seed={seed}: out of range; choose one from 0 to {_NUMPY_SEEDS - 1}")
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))
    if deterministic:
        torch.use_deterministic_algorithms(True)


_DETERMINISTIC_ENVIRONMENT = {
    "CUDA_LAUNCH_BLOCKING": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    "FLASH_ATTENTION_DETERMINISTIC": "1",
    "ASCEND_LAUNCH_BLOCKING": "1",
    "HCCL_DETERMINISTIC": "1",
}
"""What libraries below torch read, most of them only when they start."""


def enable_full_determinism(seed: int, warn_only: bool = False) -> None:
    """Seed everything and make every operation give the same result each time, at a cost in speed.

    Args:
        seed: From 0 to 2**32 - 1.
        warn_only: Warn about operations that have no deterministic form, instead of raising.
    """
    set_seed(seed)
    os.environ.update(_DETERMINISTIC_ENVIRONMENT)
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def seed_worker(worker_id: int, num_workers: int, rank: int) -> None:
    """Seed a worker of a DataLoader, differently in each process of a run.

    Args:
        worker_id: Given by torch; already part of the worker's initial seed.
        num_workers: Workers of each process.
        rank: The process the worker belongs to.
    """
    set_seed((torch.initial_seed() + num_workers * rank) % _NUMPY_SEEDS)


# State ------------------------------------------------------------------------------------------------------------

_rebuild_array = np.empty(0).__reduce__()[0]

RNG_SAFE_GLOBALS: list[Any] = [
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    # Where pickles of numpy 2 and of numpy 1 look for it.
    (_rebuild_array, "numpy._core.multiarray._reconstruct"),
    (_rebuild_array, "numpy.core.multiarray._reconstruct"),
]
"""What `torch.serialization.safe_globals` must allow for a file of random states to load with `weights_only=True`."""

_HOST_STREAMS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "python": (random.getstate, random.setstate),
    "numpy": (np.random.get_state, np.random.set_state),
    "cpu": (torch.random.get_rng_state, lambda state: torch.random.set_rng_state(state.cpu())),
}
"""The streams that every process has: how to read and how to set the state of each."""

_ACCELERATORS = ("cuda", "xpu", "npu", "mlu", "musa", "hpu", "mps")
"""Names of accelerators: those of their modules in torch, and of their states."""


def _accelerators() -> dict[str, Any]:
    """The modules of the accelerators that are there, by name."""
    modules = {name: getattr(torch, name, None) for name in _ACCELERATORS}
    return {name: module for name, module in modules.items() if module is not None and _usable(name, module)}


def _usable(name: str, module: Any) -> bool:
    # torch.mps has no is_available of its own.
    backend = torch.backends.mps if name == "mps" else module
    return hasattr(module, "get_rng_state") and bool(backend.is_available())


def capture_rng(distributed: bool) -> dict[str, Any]:
    """The states of all random streams, in the form of a checkpoint's `rng_state.pth`.

    Args:
        distributed: Whether this process is one of several: then the states of all devices are taken, else that of the
            present one.

    Returns:
        `python`, `numpy`, `cpu`, and one entry for each kind of accelerator that is there (`cuda`, ...): a state, or a
        list of them by device.
    """
    states = capture_host_rng()
    for name, module in _accelerators().items():
        takes_all = distributed and hasattr(module, "get_rng_state_all")
        states[name] = module.get_rng_state_all() if takes_all else module.get_rng_state()
    return states


def capture_host_rng() -> dict[str, Any]:
    """The states of the random streams that every process has: `python`, `numpy`, `cpu`."""
    return {name: read() for name, (read, _) in _HOST_STREAMS.items()}


def restore_host_rng(states: Mapping[str, Any]) -> None:
    """Set the streams of `capture_host_rng` to captured states."""
    for name, (_, set_state) in _HOST_STREAMS.items():
        set_state(states[name])


def restore_rng(states: Mapping[str, Any], distributed: bool) -> None:
    """Set the random streams to captured states.

    Accelerators without a state, and states without an accelerator, are told in a warning and left as they are.

    Args:
        states: From `capture_rng`, or the same through a file.
        distributed: Whether this process is one of several.

    Raises:
        ValueError: A state of Python, numpy or the CPU is missing.
    """
    missing = [name for name in _HOST_STREAMS if name not in states]
    if missing:
        raise ValueError(f"random states of {', '.join(missing)} are missing; use the rng_state file of a checkpoint")
    restore_host_rng(states)
    accelerators = _accelerators()
    saved = {name for name in _ACCELERATORS if name in states}
    if saved != accelerators.keys():
        logger.warning(
            "random states were saved for the accelerators (%s), but those here are (%s): random numbers drawn on "
            "them differ from those of an uninterrupted run",
            ", ".join(sorted(saved)),
            ", ".join(sorted(accelerators)),
        )
    for name in saved & accelerators.keys():
        _restore_devices(name, accelerators[name], states[name], distributed)


def _restore_devices(name: str, module: Any, state: torch.Tensor | list[torch.Tensor], distributed: bool) -> None:
    """Set the present device, or, from states by device, each of those that are here."""
    if isinstance(state, torch.Tensor):
        if distributed:
            logger.warning("%s: the random state was saved by a single process; it is set on every process", name)
        module.set_rng_state(state.cpu())
        return
    for device, of_device in enumerate(state[: module.device_count()]):
        module.set_rng_state(of_device.cpu(), device)
    if module.current_device() >= len(state):
        logger.warning("%s: no random state was saved for device %d", name, module.current_device())
