"""DeepSpeed's own objects that its checkpoints hold, beside tensors and plain values: inert stand-ins for exactly these."""

from __future__ import annotations

import os
from typing import Any

from mainspring.checkpoint.allowed import DEEPSPEED_GLOBALS
from mainspring.checkpoint.lazy_torch import Inert, read_lazily
from mainspring.errors import CheckpointError

DEEPSPEED_OBJECTS: dict[str, Any] = {
    **dict.fromkeys(DEEPSPEED_GLOBALS, Inert),
    "deepspeed.runtime.zero.config.ZeroStageEnum": int,
}
"""What is made of each name."""


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one of DeepSpeed's files without its tensors.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is damaged, refused, or no state of DeepSpeed's.
        OSError: The system would not read it.
    """
    state = read_lazily(path, DEEPSPEED_OBJECTS)
    if not isinstance(state, dict):
        raise CheckpointError(f"{os.fspath(path)} holds no state of DeepSpeed's")
    return state
