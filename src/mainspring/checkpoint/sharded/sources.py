"""An optimizer's state out of a checkpoint, in whatever form it has it, where each process is to hold shards of it.

The forms are those of this library and of the reference: whole and by numbers (`optimizer.pt`), whole and by names
(`optimizer.bin`), in shards, in DeepSpeed's pieces.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import distributed as dist, nn

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.names import (
    DEEPSPEED_LATEST_NAME,
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    SHARDED_OPTIMIZER_FOLDER,
)
from mainspring.checkpoint.optimizer_files import whole_optimizer
from mainspring.checkpoint.pickles import METADATA_SUFFIX
from mainspring.checkpoint.sharded.optimizers import load_optimizer_shards, put_optimizer_state
from mainspring.checkpoint.sharded.whole import is_main

if TYPE_CHECKING:
    from torch.optim import Optimizer


def load_optimizer_across(model: nn.Module, optimizer: Optimizer, folder: str | os.PathLike[str]) -> bool:
    """Load an optimizer's state of which each process holds shards; every process calls it.

    Args:
        model: Whose parameters it steps.
        optimizer: The optimizer.
        folder: The checkpoint. A state that is whole there is read by the main process alone.

    Returns:
        Whether the checkpoint has such a state.

    Raises:
        CheckpointError: It is damaged, refused, or the state of other parameters.
    """
    contents = Contents.of(folder)
    shards = contents.below(SHARDED_OPTIMIZER_FOLDER)
    if shards.file(METADATA_SUFFIX) is not None:
        load_optimizer_shards(model, optimizer, shards.root)
        return True
    if not any(contents.file(name) for name in (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, DEEPSPEED_LATEST_NAME)):
        return False
    put_optimizer_state(model, optimizer, _by_main(lambda: whole_optimizer(contents)) or {})
    return True


def _by_main(read: Callable[[], Any]) -> Any:
    """What the main process reads, on that process; its error is everybody's."""
    result = error = None
    if is_main():
        try:
            result = read()
        except Exception as problem:  # noqa: BLE001 (raised below, on every process)
            error = problem
    if dist.is_initialized():
        box = [error]
        dist.broadcast_object_list(box, src=0)
        error = error or box[0]
    if error is not None:
        raise error
    return result
