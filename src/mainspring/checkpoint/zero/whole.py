"""DeepSpeed's functions that make weights of its checkpoints, under their names and with their arguments."""

from __future__ import annotations

import logging
import os
from typing import TypeVar

import torch
from torch import Tensor, nn

from mainspring.checkpoint.stored import Stored
from mainspring.checkpoint.zero.weights import zero_weights
from mainspring.errors import CheckpointError
from mainspring.model import tell_of_filling

logger = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=nn.Module)


def get_fp32_state_dict_from_zero_checkpoint(
    checkpoint_dir: str | os.PathLike[str],
    tag: str | None = None,
    exclude_frozen_parameters: bool = False,
    lazy_mode: bool = False,
) -> dict[str, Tensor]:
    """Return the weights in a checkpoint of DeepSpeed's, of whichever stage, whole and on the CPU.

    Parameters that are trained have the float32 values that the optimizer steps; buffers are float32 too where they are
    floating-point numbers, and frozen parameters as they were. Without ZeRO (stage 0) everything is as the model had it.

    Args:
        checkpoint_dir: The folder that holds the file `latest`: for example `out/checkpoint-500`.
        tag: Which of the folders beside that file, as in "global_step500"; None: the one that it names.
        exclude_frozen_parameters: Whether to leave out what was not trained.
        lazy_mode: Leave the tensors in their files: each is a `Stored`, whose `contiguous()` reads it.

    Returns:
        Names to tensors. Tied weights have all their names, and are one tensor.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged or refused.
        OSError: The system would not read a file.
    """
    found = zero_weights(checkpoint_dir, tag, exclude_frozen_parameters)
    if lazy_mode:
        lazy: dict[str, Stored] = {**found.tensors, **{name: found.tensors[to] for name, to in found.aliases.items()}}
        return lazy  # type: ignore[return-value]  # as DeepSpeed declares it
    state = {name: value.read() for name, value in found.tensors.items()}
    if found.stage:
        state |= {name: state[name].float() for name in found.buffers if state[name].is_floating_point()}
    return {**state, **{name: state[to] for name, to in found.aliases.items()}}


@torch.no_grad()
def load_state_dict_from_zero_checkpoint(
    model: _Model, checkpoint_dir: str | os.PathLike[str], tag: str | None = None
) -> _Model:
    """Move a model to the CPU and give it the weights in a checkpoint of DeepSpeed's, one after the other.

    Also a model whose parameters DeepSpeed has divided (stage 3) gets them whole. With its engine it cannot be trained any
    more, of whichever stage: make a new model and a new Trainer, which say so where one goes on all the same. It can be used
    by itself, and saved.

    Args:
        model: The model, not the engine around it. Its dtypes stay.
        checkpoint_dir: As in `get_fp32_state_dict_from_zero_checkpoint`.
        tag: As there.

    Returns:
        The model.

    Raises:
        CheckpointError: A shape differs, not one name matches, or the checkpoint cannot be read.
    """
    found = zero_weights(checkpoint_dir, tag)
    model = model.cpu()
    own = model.state_dict(keep_vars=True)
    names = {**{name: name for name in found.tensors}, **found.aliases}
    common = {name: source for name, source in names.items() if name in own}
    if names and not common:
        raise CheckpointError(
            f"{os.fspath(checkpoint_dir)} holds the weights of another model: none of its names is one of "
            f"{type(model).__name__}'s"
        )
    tell_of_filling(model)
    done: set[int] = set()
    for name, source in common.items():
        if id(own[name]) not in done:
            _fill(name, own[name], found.tensors[source])
            done.add(id(own[name]))
    _tell(type(model).__name__, [name for name in own if id(own[name]) not in done], [n for n in names if n not in own])
    return model


def _fill(name: str, target: Tensor, source: Stored) -> None:
    divided = getattr(target, "ds_shape", None)  # then its own values are elsewhere, and it is empty
    shape = target.shape if divided is None else divided
    if tuple(shape) != tuple(source.shape):
        raise CheckpointError(
            f"{name} has shape {list(source.shape)} in the checkpoint, and {list(shape)} in the model"
        )
    if divided is not None:
        target.data = source.read().to(target.dtype)
        target.ds_status = type(target.ds_status).AVAILABLE  # type: ignore[attr-defined]
    else:
        target.copy_(source.read())


def _tell(model: str, missing: list[str], unexpected: list[str]) -> None:
    for what, names in (("the checkpoint lacks", missing), (f"{model} has no", unexpected)):
        if names:
            logger.warning("%s %d tensor(s): %s", what, len(names), ", ".join(names[:5]))
