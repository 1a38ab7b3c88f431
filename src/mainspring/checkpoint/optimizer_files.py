"""An optimizer's state out of a checkpoint, in whatever form it has it, where every process holds all of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.names import (
    DEEPSPEED_LATEST_NAME,
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    SHARDED_OPTIMIZER_FOLDER,
)
from mainspring.checkpoint.pickles import METADATA_SUFFIX
from mainspring.checkpoint.torch_files import load_torch

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def load_optimizer(model: nn.Module, optimizer: Optimizer, folder: str | os.PathLike[str]) -> bool:
    """Load an optimizer's state; no process waits for another.

    Args:
        model: Whose parameters it steps.
        optimizer: The optimizer.
        folder: The checkpoint, of one process or of any number of them.

    Returns:
        Whether the checkpoint has such a state.

    Raises:
        CheckpointError: It is damaged, refused, or the state of other parameters.
    """
    contents = Contents.of(folder)
    state = whole_optimizer(contents)
    if state is not None and is_numbered(state):
        optimizer.load_state_dict(state)
        return True
    shards = contents.below(SHARDED_OPTIMIZER_FOLDER)
    if state is None and shards.file(METADATA_SUFFIX) is None:
        return False
    from mainspring.checkpoint import sharded  # only here, since torch's distributed checkpoints are dear to import

    if state is None:
        state = sharded.whole_shards(shards.root, "optimizer")
    sharded.load_named_state(model, optimizer, state)
    return True


def whole_optimizer(contents: Contents) -> dict[str, Any] | None:
    """The state that lies in one file, or in those of DeepSpeed, by numbers or by names; None: there is none."""
    for name in (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN):
        if file := contents.file(name):
            return dict(load_torch(file))
    if contents.file(DEEPSPEED_LATEST_NAME) is None:
        return None
    from mainspring.checkpoint.zero import read_all, zero_optimizer

    return dict(read_all(zero_optimizer(contents)))


def is_numbered(state: Mapping[str, Any]) -> bool:
    """Whether an optimizer's state is by the numbers of the parameters, rather than by their names."""
    return not any(isinstance(key, str) for group in state["param_groups"] for key in group["params"])
