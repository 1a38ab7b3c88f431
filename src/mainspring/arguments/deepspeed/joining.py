"""How processes join for DeepSpeed: when a model is divided while it is loaded, or when its engine is started."""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Callable
from typing import Any

from mainspring.arguments import launchers

_BY_LAUNCHERS = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def join(kind: str) -> None:
    """Join the processes; one that no launcher started makes a world of its own.

    Args:
        kind: What kind of device they compute on.
    """
    from torch import distributed as dist

    import deepspeed

    backend = "cpu:gloo" if kind == "cpu" else None
    if not dist.is_initialized():
        os.environ.update(launchers.torch_words(os.environ))
        # One of several that lacks a word is told so by torch: a world of its own would train by itself.
        if os.environ.keys() >= _BY_LAUNCHERS or os.environ.get("WORLD_SIZE", "1") != "1":
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{_free_port()}", rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # which DeepSpeed reads
    deepspeed.init_distributed(dist_backend="gloo" if kind == "cpu" else "nccl", verbose=False)


def join_as_deepspeed_would() -> None:
    """Join the processes of a script that has no arguments to say how, on the device that DeepSpeed has found."""
    from deepspeed.accelerator import get_accelerator

    join(get_accelerator().device_name())


def as_arguments_say(args: Any) -> Callable[[], None]:
    """What joins the processes of arguments: with their device, backend and time limit.

    Args:
        args: The arguments; what comes back does not keep them.
    """
    found = weakref.ref(args)

    def join_processes() -> None:
        kept = found()
        if kept is not None:
            join(kept.device.type)

    return join_processes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[Any, int] = probe.getsockname()
        return address[1]
