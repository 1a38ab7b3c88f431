"""Starting a function as several processes from a notebook."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["notebook_launcher"]


def notebook_launcher(
    function: Callable[..., Any], args: tuple[Any, ...] = (), num_processes: int | None = None, **settings: Any
) -> None:
    """Run `function` in several processes of this machine, which train together; for notebooks.

    This is Accelerate's launcher of the same name, with its keywords. It copies the notebook's process, whose threads do not
    come along: on the CPU, a copy would wait for them for ever at its first larger operation, if the notebook has
    computed anything with several threads before. So each copy computes with one thread there.

    Args:
        function: What to run. Everything that touches a GPU or makes an `Accelerator` belongs inside.
        args: Its arguments.
        num_processes: How many processes; by default one for each GPU, or one.
        settings: Accelerate's further keywords, such as `mixed_precision` or `use_port`.

    Raises:
        ValueError: A setting cannot be, or an `Accelerator` was made before.
        RuntimeError: A process failed.
    """
    from accelerate import notebook_launcher as launch

    from mainspring.launch.machine import find_devices

    count = num_processes or max(1, find_devices(cpu=False).count)
    launch(_with_own_threads(function), args, count, **settings)


def _with_own_threads(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any) -> Any:
        import torch

        if not torch.accelerator.is_available() and _is_copy():
            torch.set_num_threads(1)
        return function(*args)

    return run


def _is_copy() -> bool:
    import multiprocessing

    return multiprocessing.parent_process() is not None
