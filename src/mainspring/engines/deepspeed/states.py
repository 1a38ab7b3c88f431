"""What DeepSpeed's checkpoints hold, and how they are read back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mainspring.errors import CheckpointError


def whole_weights(engine: Any) -> dict[str, Tensor]:
    """The weights of stage 3, gathered: by name on the first process, {} on the others."""
    state: dict[str, Tensor] | None = engine._zero3_consolidated_16bit_state_dict()
    return state or {}


def load(engine: Any, folder: str) -> None:
    """Load weights, optimizer and schedule of a DeepSpeed checkpoint.

    Raises:
        CheckpointError: Nothing was loaded.
    """
    path, _ = engine.load_checkpoint(folder)
    if path is None:
        raise CheckpointError(f"{folder}: DeepSpeed found no checkpoint of its own there; resume from another one")
