"""Loading a checkpoint of any engine into any other: whole states or shards, by the names of parameters or their numbers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch import nn

from mainspring import checkpoint as ckpt
from mainspring.checkpoint.names import SHARDED_MODEL_FOLDER

if TYPE_CHECKING:
    from torch.optim import Optimizer


def weight_shards(folder: str) -> str | None:
    """Where a checkpoint has its weights in shards; None: they are whole, or there are none."""
    return _shards(folder, SHARDED_MODEL_FOLDER)


def load_any_weights(model: nn.Module, folder: str) -> ckpt.LoadReport:
    """Load a checkpoint's weights into a model that takes whole tensors, and shards by itself. All processes call it."""
    shards = weight_shards(folder)
    if shards is None:
        return ckpt.load_weights(model, folder)
    from mainspring.checkpoint import sharded  # which takes its time to import

    return sharded.load_model_shards(model, shards)


def load_any_optimizer(model: nn.Module, optimizer: Optimizer, folder: str) -> bool:
    """Load an optimizer's state; False where the checkpoint has none. All processes call it.

    Args:
        model: Whose parameters it steps.
        optimizer: The optimizer.
        folder: The checkpoint.
    """
    from mainspring.checkpoint import sharded

    return sharded.load_optimizer_across(model, optimizer, folder)


def _shards(folder: str, name: str) -> str | None:
    there = ckpt.Contents.of(folder).below(name).file(".metadata") is not None
    return os.path.join(folder, name) if there else None
