"""What the optimizer remembers of each parameter in a checkpoint of DeepSpeed's.

DeepSpeed keeps it as it keeps the weights that the optimizer steps: a row of numbers for a group, divided over the processes.
So it is cut as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.stored import InFiles, Stored
from mainspring.checkpoint.zero.layout import Layout, layout_of
from mainspring.checkpoint.zero.objects import read_state
from mainspring.checkpoint.zero.offloaded import offloaded_state, with_offloaded
from mainspring.checkpoint.zero.partitions import Shapes, cut_groups, cut_parameters, flat
from mainspring.checkpoint.zero.weights import stage_of
from mainspring.errors import CheckpointError

_State = dict[str, Any]
_COUNTS = ("global_steps", "global_samples", "skipped_steps")


def zero_optimizer(contents: Contents) -> _State:
    """Find the optimizer's state; no tensor is read yet.

    Args:
        contents: The checkpoint.

    Returns:
        It as a `state_dict`, with a `Stored` in the place of each tensor. Where processes divided it, names are in the place of
        numbers; without ZeRO it is by numbers.

    Raises:
        CheckpointError: A file is missing, damaged or refused, or the model was divided otherwise than ZeRO divides.
        OSError: The system would not read a file.
    """
    layout = layout_of(contents)
    try:
        model = read_state(layout.models[0])
        if not layout.optimizers:
            # In half precision what DeepSpeed keeps beside it comes with it.
            found: _State = model["optimizer"].get("optimizer_state_dict", model["optimizer"])
            return {"state": found["state"], "param_groups": found["param_groups"]}
        states = [read_state(file)["optimizer_state_dict"] for file in layout.optimizers]
        return _divided(layout, model["param_shapes"], states)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{layout.folder} is not laid out as DeepSpeed's checkpoints are ({what})") from error


def zero_progress(contents: Contents) -> tuple[Any, dict[str, int]]:
    """Return the state of DeepSpeed's own schedule, None where it had none, and its counts of steps and samples.

    Args:
        contents: The checkpoint.

    Raises:
        CheckpointError: It is damaged or refused.
    """
    model = read_state(layout_of(contents).models[0])
    return read_all(model.get("lr_scheduler")), {name: int(model[name]) for name in _COUNTS if name in model}


def read_all(value: Any) -> Any:
    """Return a state with its tensors in memory."""
    if isinstance(value, Stored):
        return value.read()
    if isinstance(value, dict):
        return {key: read_all(one) for key, one in value.items()}
    return type(value)(read_all(one) for one in value) if isinstance(value, (list, tuple)) else value


def _divided(layout: Layout, shapes: Sequence[Shapes], states: list[_State]) -> _State:
    stage = stage_of(states[0])
    if stage == 3:
        where, weights = "optimizer_state_dict", "fp32_flat_groups"
    else:
        where, weights = "base_optimizer_state", "single_partition_of_fp32_groups"
    if not isinstance(states[0][where], dict):
        raise CheckpointError(f"{layout.folder} has the optimizer's state in an older form (elastic_checkpoint)")
    own = [[flat(part) for part in state[weights]] for state in states]
    if stage == 3:
        own = [with_offloaded(layout.folder, rank, shapes, part, len(own)) for rank, part in enumerate(own)]
    kept = [[state[where]["state"].get(place, {}) for place in range(len(shapes))] for state in states]
    found = _alike(shapes, kept[0])
    for kind in dict.fromkeys(kind for state in kept[0] for kind, value in state.items() if _is_row(value)):
        parts = [
            [_beside(weight, state.get(kind), kind) for weight, state in zip(*pair, strict=True)]
            for pair in zip(own, kept, strict=True)
        ]
        gaps = states[0].get("param_alignment_paddings")
        cut = cut_parameters(shapes, parts) if stage == 3 else cut_groups(shapes, parts, gaps)
        for name, part in cut.items():
            found[name][kind] = part
    groups = states[0][where]["param_groups"]
    return {"state": found, "param_groups": [_named(group, shapes) for group in groups]}


def _alike(shapes: Sequence[Shapes], kept: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is one value for all parameters of a group, such as the count of steps."""
    return {
        name: {kind: read_all(value) for kind, value in state.items() if not _is_row(value)}
        for group, state in zip(shapes, kept, strict=True)
        for name in group
    }


def _named(group: _State, shapes: Sequence[Shapes]) -> _State:
    """A group with names; at stage 3 it was divided into several."""
    return {**read_all(group), "params": [name for place in group["params"] for name in shapes[place]]}


def _is_row(value: Any) -> bool:
    return isinstance(value, Stored) and len(value.shape) == 1


def _beside(weight: InFiles, value: Any, kind: str) -> InFiles:
    """What belongs to a process's part of the weights, without what fills the part up."""
    if weight.numel() and not value.numel():
        return offloaded_state(weight, kind)
    row = flat(value)
    return InFiles(weight.shape, row.dtype, row.flat(0, weight.numel()))
