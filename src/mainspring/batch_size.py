"""Finding a batch size that fits into memory, for scripts that search by themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def find_executable_batch_size(
    function: Callable[..., Any] | None = None, starting_batch_size: int = 128, auto_find_batch_size: bool = False
) -> Callable[..., Any]:
    """Give `function` its first argument, `batch_size`: the largest that fits, or just the one to start with.

    Usable as a decorator, with or without arguments.

    Args:
        function: Takes `batch_size` first.
        starting_batch_size: Tried first.
        auto_find_batch_size: Whether to try smaller ones while memory runs out (Accelerate's search).
    """
    if function is None:
        return functools.partial(
            find_executable_batch_size,
            starting_batch_size=starting_batch_size,
            auto_find_batch_size=auto_find_batch_size,
        )
    if not auto_find_batch_size:
        return functools.partial(function, batch_size=starting_batch_size)
    from accelerate.utils import find_executable_batch_size as search

    found: Callable[..., Any] = search(function, starting_batch_size=starting_batch_size)
    return found
