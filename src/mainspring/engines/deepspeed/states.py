"""What DeepSpeed's checkpoints hold, and how weights are read into a model that it divides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mainspring import checkpoint as ckpt
from mainspring.arguments.deepspeed.reading import setting
from mainspring.engines.deepspeed.starting import import_deepspeed
from mainspring.errors import CheckpointError


def whole_weights(engine: Any) -> dict[str, Tensor]:
    """The weights of stage 3, gathered: by name on the first process, {} on the others."""
    state: dict[str, Tensor] | None = engine._zero3_consolidated_16bit_state_dict()
    return state or {}


def load(engine: Any, config: Mapping[str, Any], folder: str) -> None:
    """Load weights, optimizer and schedule of a DeepSpeed checkpoint.

    Raises:
        CheckpointError: Nothing was loaded, or would be.
    """
    if setting(config, "zero_optimization.offload_optimizer.device") == "nvme":
        raise CheckpointError(
            f"{folder}: DeepSpeed reads nothing of a checkpoint into an optimizer that lies on NVMe, and says nothing of it; "
            "set zero_optimization.offload_optimizer.device to 'cpu' to go on from this checkpoint"
        )
    path, _ = engine.load_checkpoint(folder)
    if path is None:
        raise CheckpointError(f"{folder}: DeepSpeed found no checkpoint of its own there; resume from another one")


def load_whole(engine: Any, model: nn.Module, folder: str) -> ckpt.LoadReport:
    """Load whole weights into the pieces, and into the copies in full precision that the optimizer steps."""
    pieces = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    with import_deepspeed().zero.GatheredParameters(pieces, modifier_rank=0, enabled=bool(pieces)):
        report = ckpt.load_weights(model, folder)
    refresh = getattr(engine.optimizer, "refresh_fp32_params", None)
    if refresh is not None:
        refresh()
    return report
