"""How processes join for DeepSpeed, and how its package is found."""

from __future__ import annotations

import os
import socket
from types import ModuleType
from typing import Any

import torch
from torch import distributed as dist

from mainspring.errors import NotAvailableError, Problem


def import_deepspeed() -> ModuleType:
    """The package.

    Raises:
        NotAvailableError: It is not installed.
    """
    try:
        import deepspeed
    except ImportError as error:
        why = f"the package deepspeed cannot be imported ({error})"
        raise NotAvailableError([Problem("deepspeed", True, why, "pip install deepspeed")]) from error
    return deepspeed  # type: ignore[no-any-return]


def join(device: torch.device) -> None:
    """Join the processes; one that no launcher started makes a world of its own."""
    package = import_deepspeed()
    backend = "cpu:gloo" if device.type == "cpu" else None
    if not dist.is_initialized():
        launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        if launched:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{_free_port()}", rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # which DeepSpeed reads
    package.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl", verbose=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[Any, int] = probe.getsockname()
        return address[1]
