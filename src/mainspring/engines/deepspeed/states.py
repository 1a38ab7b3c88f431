"""What DeepSpeed's checkpoints hold, and how those of any engine are read into a model that it divides."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mainspring import checkpoint as ckpt
from mainspring.arguments.deepspeed import registry
from mainspring.checkpoint.names import DEEPSPEED_LATEST_NAME
from mainspring.checkpoint.pickles import refuse
from mainspring.checkpoint.zero.layout import Layout, layout_of
from mainspring.checkpoint.zero.objects import read_state
from mainspring.checkpoint.zero.weights import stage_of
from mainspring.engines.deepspeed import tensor_parallel
from mainspring.engines.deepspeed.divided import loading_in_turn
from mainspring.engines.deepspeed.layers import is_part
from mainspring.engines.deepspeed.reading import only_pieces
from mainspring.errors import CheckpointError
from mainspring.model import is_peft

logger = logging.getLogger(__name__)

_UNIVERSAL_NAME = "latest_universal"


def whole_weights(engine: Any) -> dict[str, Tensor]:
    """The weights of stage 3, gathered: by name on the first process, {} on the others."""
    state: dict[str, Tensor] | None = engine._zero3_consolidated_16bit_state_dict()
    return state or {}


def is_own(engine: Any, folder: str) -> bool:
    """Whether DeepSpeed itself can read a checkpoint into an engine, with all that it holds.

    It can where as many processes wrote it at the same stage; or where it was made universal, and the configuration says so.
    """
    contents = ckpt.Contents.of(folder)
    if contents.file(DEEPSPEED_LATEST_NAME) is None:
        return False
    if _is_universal(engine, folder):
        return True
    if engine.mp_world_size > 1:
        return tensor_parallel.is_own(engine, folder)
    # Into an optimizer on NVMe DeepSpeed reads nothing, and says nothing of it.
    return not engine.zero_nvme_offload_optimizer() and _fits(engine, layout_of(contents))


def say_where_not_universal(engine: Any, folder: str) -> None:
    """Say of a checkpoint that is not what the configuration asks for that it is read as any other: DeepSpeed would not."""
    if engine.load_universal_checkpoint() and not _is_universal(engine, folder):
        logger.warning(
            "checkpoint.load_universal: %s has no %s, and its own pieces are read; DeepSpeed's ds_to_universal makes one of them",
            folder,
            _UNIVERSAL_NAME,
        )


def load(engine: Any, model: nn.Module, folder: str) -> bool:
    """Let DeepSpeed load weights, optimizer and schedule of a checkpoint that `is_own`.

    Returns:
        Whether it was a universal one.

    Raises:
        CheckpointError: A file was refused, or nothing was loaded.
    """
    universal = _is_universal(engine, folder)
    if universal:
        for file in sorted(
            Path(folder, Path(folder, _UNIVERSAL_NAME).read_text(encoding="utf-8").strip()).rglob("*.pt")
        ):
            refuse(file)
    with _loading_universal(engine, universal):
        path, _ = engine.load_checkpoint(folder, load_module_strict=not is_peft(model))
    if path is None:
        raise CheckpointError(f"{folder}: DeepSpeed found no checkpoint of its own there; resume from another one")
    return universal


def load_whole(engine: Any, model: nn.Module, folder: str) -> ckpt.LoadReport:
    """Load whole weights, or the pieces of any engine, into the pieces that the model computes with."""
    with registry.out_of_force(), only_pieces(), loading_in_turn(model):
        report = ckpt.load_weights(model, folder)
    refresh = getattr(engine.optimizer, "refresh_fp32_params", None)
    if refresh is not None and not engine.zero_nvme_offload_optimizer():
        refresh()
    return report


def checkpoint_bytes(engine: Any, model: nn.Module, optimizer: Any, whole: bool) -> int:
    """Return about how many bytes a checkpoint takes.

    Args:
        engine: The `DeepSpeedEngine`.
        model: The model.
        optimizer: What is saved of its optimizer; None: nothing.
        whole: Whether the weights are saved whole beside the pieces.
    """
    sizes = {
        p: (int(getattr(p, "ds_numel", p.numel())) * (engine.mp_world_size if is_part(p) else 1), p.element_size())
        for p in model.parameters()
    }
    weights: int = sum(count * size for count, size in sizes.values())
    if optimizer is None:
        return weights
    kinds: int = max(
        (sum(value.dim() > 0 for value in _tensors(state)) for state in optimizer.state.values()), default=2
    )
    stage = int(engine.zero_optimization_stage())
    copies: int = kinds + (stage > 0 or len({size for _, size in sizes.values()} - {4}) > 0)
    trained: int = sum(count for p, (count, _) in sizes.items() if p.requires_grad)
    return 4 * copies * trained + weights * (whole + (stage < 3))


def _tensors(state: Any) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor)]


def _is_universal(engine: Any, folder: str) -> bool:
    return bool(engine.load_universal_checkpoint()) and os.path.isfile(os.path.join(folder, _UNIVERSAL_NAME))


@contextlib.contextmanager
def _loading_universal(engine: Any, universal: bool) -> Iterator[None]:
    """A run that began from a universal checkpoint goes on from its own, which are none."""
    before = engine._config.load_universal_checkpoint
    engine._config.load_universal_checkpoint = universal
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = before


def _fits(engine: Any, layout: Layout) -> bool:
    stage = engine.zero_optimization_stage()
    if stage == 0 or not layout.optimizers:
        return stage == 0 and not layout.optimizers
    state = read_state(layout.optimizers[0])["optimizer_state_dict"]
    if len(layout.optimizers) != engine.seq_dp_world_size or stage_of(state) != stage:
        return False
    rows = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    if rows is None:
        return True
    return [row.numel() for row in rows] == [part.numel() for part in state["fp32_flat_groups"]]
