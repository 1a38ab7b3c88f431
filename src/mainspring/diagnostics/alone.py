"""A process that runs something by itself, while the others run something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Alone(TorchDispatchMode):
    """In the body nothing is exchanged with other processes.

    A loss that gathers what the others have, or a normalisation over all of them, would wait for an answer that does not
    come, or take another one for it.

    Raises:
        RuntimeError: Where it is tried, before anything is sent.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Let all operations pass but those between processes."""
        if "c10d" in func.namespace:
            raise RuntimeError(f"the model or its loss talks to other processes ({func}), which are not asked here")
        operation: Callable[..., Any] = func
        return operation(*args, **(kwargs or {}))
