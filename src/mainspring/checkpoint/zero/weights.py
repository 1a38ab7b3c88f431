"""The whole model in a checkpoint of DeepSpeed's, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.stored import InFiles, Stored
from mainspring.checkpoint.zero.layout import Layout, layout_of
from mainspring.checkpoint.zero.objects import read_state
from mainspring.checkpoint.zero.offloaded import with_offloaded
from mainspring.checkpoint.zero.partitions import cut_groups, cut_parameters, flat, from_pieces
from mainspring.checkpoint.zero.universal import universal_parameters
from mainspring.errors import CheckpointError

_State = dict[str, Any]
_EXPERTS = ("ds_autoep_layers", "autoep_layers")


@dataclass(frozen=True)
class ZeroWeights:
    """What a checkpoint holds of a model.

    Attributes:
        stage: The stage of ZeRO that wrote it; 0 where none did.
        tensors: Each once: buffers, then frozen parameters, then those that the optimizer steps, these as it has them.
        aliases: Further names of tied weights, with the name that `tensors` has for each.
        buffers: Which of the tensors are buffers.
    """

    stage: int
    tensors: dict[str, Stored]
    aliases: dict[str, str]
    buffers: frozenset[str]


def zero_weights(
    folder: str | os.PathLike[str], tag: str | None = None, exclude_frozen_parameters: bool = False
) -> ZeroWeights:
    """Find the weights in a checkpoint of DeepSpeed's; none is read yet.

    Args:
        folder: The one that holds the file `latest`. Where it has a manifest, only what that lists is read.
        tag: Which of the folders beside that file; None: the one that it names.
        exclude_frozen_parameters: Whether to leave out what was not trained.

    Raises:
        CheckpointError: There is none, a file is missing, damaged or refused, or the model was divided otherwise than ZeRO
            divides.
        OSError: The system would not read a file.
    """
    layout = layout_of(Contents.of(folder), tag)
    try:
        models = [read_state(file) for file in layout.models]
        found = _weights(layout, models)
    except CheckpointError as error:
        known = str(layout.folder) in str(error)
        raise error if known else CheckpointError(f"{layout.folder} cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{layout.folder} is not laid out as DeepSpeed's checkpoints are ({what})") from error
    if exclude_frozen_parameters:
        frozen = _frozen_names(models[0], found)
        kept = {name: value for name, value in found.tensors.items() if name not in frozen}
        aliases = {name: owner for name, owner in found.aliases.items() if owner in kept}
        return ZeroWeights(found.stage, kept, aliases, found.buffers)
    return found


def _weights(layout: Layout, models: list[_State]) -> ZeroWeights:
    model = models[0]
    _refuse_experts(layout, model)
    if not layout.optimizers and layout.universal is None:
        return _undivided(layout, model)
    stage, trained = _trained(layout, model)
    names = frozenset(model["buffer_names"])
    buffers = {name: value for name, value in model["module"].items() if name in names}
    tensors: dict[str, Stored] = {**buffers, **_frozen(stage, models, trained), **trained}
    aliases = {name: owner for name, owner in (model["shared_params"] or {}).items() if owner in tensors}
    return ZeroWeights(stage, _tensors_alone(tensors), aliases, names & tensors.keys())


def _refuse_experts(layout: Layout, model: _State) -> None:
    if any(model.get(name) for name in _EXPERTS):
        raise CheckpointError(f"{layout.folder} is of a model of experts: only what ZeRO divides can be joined here")


def _undivided(layout: Layout, model: _State) -> ZeroWeights:
    """Without ZeRO one file holds the model as it is."""
    if len(layout.models) > 1 or model.get("param_shapes") is not None:
        raise CheckpointError(
            f"{layout.folder} lacks what the processes wrote of the optimizer (*_optim_states.pt), which holds the weights"
        )
    tensors = _tensors_alone(model["module"])
    return ZeroWeights(0, tensors, {}, frozenset(model["buffer_names"]) & tensors.keys())


def _trained(layout: Layout, model: _State) -> tuple[int, dict[str, InFiles]]:
    if layout.universal is not None:
        return _universal_stage(layout), universal_parameters(layout.universal, model)
    states = [read_state(file)["optimizer_state_dict"] for file in layout.optimizers]
    count = states[0]["partition_count"]
    written = max(count) if isinstance(count, list) else count
    if written != len(states):
        raise CheckpointError(
            f"{layout.folder} holds what {len(states)} processes wrote of the optimizer, and there were {written}"
        )
    stage = stage_of(states[0])
    shapes = model["param_shapes"]
    if stage == 3:
        parts = [
            with_offloaded(layout.folder, rank, shapes, [flat(part) for part in state["fp32_flat_groups"]], len(states))
            for rank, state in enumerate(states)
        ]
        return stage, cut_parameters(shapes, parts)
    parts = [state["single_partition_of_fp32_groups"] for state in states]
    return stage, cut_groups(shapes, parts, states[0].get("param_alignment_paddings"))


def stage_of(state: _State) -> int:
    """Return the stage of ZeRO that wrote an optimizer's state."""
    # DeepSpeed's optimizer for bf16 divides as stage 1 does, and does not say so.
    return int(state.get("zero_stage", 1))


def _universal_stage(layout: Layout) -> int:
    return 1 if layout.models[0].name.startswith("mp_rank") else 3


def _frozen(stage: int, models: list[_State], trained: Mapping[str, Any]) -> dict[str, Stored]:
    """What the optimizer does not step: divided at stage 3, else whole; stage 1 has it among the model's alone."""
    model = models[0]
    fragments = model.get("frozen_param_fragments")
    if stage == 3:
        shapes = model.get("frozen_param_shapes") or {}
        return {
            name: from_pieces(shape, [one["frozen_param_fragments"][name] for one in models])
            for name, shape in shapes.items()
        }
    if fragments:
        return dict(fragments)
    left_out = {*trained, *model["buffer_names"], *(model["shared_params"] or {})}
    return {name: value for name, value in model["module"].items() if name not in left_out}


def _frozen_names(model: _State, found: ZeroWeights) -> frozenset[str]:
    trained = {name for group in model.get("param_shapes") or () for name in group}
    return frozenset(found.tensors) - trained - found.buffers if trained else frozenset()


def _tensors_alone(found: Mapping[str, Any]) -> dict[str, Stored]:
    other = next((name for name, value in found.items() if not isinstance(value, Stored)), None)
    if other is not None:
        raise CheckpointError(f"{other} is not a tensor")
    return dict(found)
