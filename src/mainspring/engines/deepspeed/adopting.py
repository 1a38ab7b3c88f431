"""Checkpoints that DeepSpeed itself cannot read into an engine, put into its pieces name by name.

They are those of other engines, of other numbers of processes, of other stages, and all where the optimizer lies on NVMe.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from mainspring import checkpoint as ckpt
from mainspring.checkpoint.names import DEEPSPEED_LATEST_NAME, SHARDED_OPTIMIZER_FOLDER
from mainspring.checkpoint.optimizer_files import whole_optimizer
from mainspring.checkpoint.pickles import METADATA_SUFFIX
from mainspring.checkpoint.stored import Stored
from mainspring.checkpoint.weights import weight_pieces, without_wrapper_prefix
from mainspring.checkpoint.zero import read_all, zero_optimizer, zero_progress
from mainspring.engines.deepspeed.parts import SteppedByEngine
from mainspring.engines.deepspeed.pieces import Filling, fill
from mainspring.errors import CheckpointError

logger = logging.getLogger(__name__)


def adopt_weights(optimizer: SteppedByEngine, model: nn.Module, folder: str) -> None:
    """Put a checkpoint's weights into the copies in full precision that the optimizer steps.

    Args:
        optimizer: The engine's.
        model: The model, which has the weights already, in its own precision.
        folder: The checkpoint.
    """
    names = _names(model)
    for _, piece in weight_pieces(ckpt.Contents.of(folder)):
        weights = without_wrapper_prefix(piece)

        def find(parameter: nn.Parameter, weights: Mapping[str, Any] = weights) -> Filling | None:
            weight = next((weights[name] for name in names[id(parameter)] if name in weights), None)
            return None if weight is None else Filling(weight)

        fill(optimizer.engine, optimizer.inner, find)


def adopt_optimizer(optimizer: SteppedByEngine, model: nn.Module, folder: str) -> bool:
    """Put what a checkpoint's optimizer remembers into the pieces of this one.

    Args:
        optimizer: The engine's.
        model: The model.
        folder: The checkpoint.

    Returns:
        Whether the checkpoint has such a state.

    Raises:
        CheckpointError: It is the state of other parameters, or cannot be divided.
    """
    contents = ckpt.Contents.of(folder)
    found = _state(contents)
    if found is None:
        return False
    state = _by_names(model, optimizer.members, found)
    names = _names(model)
    _refuse_others(state, [names[id(p)] for group in optimizer.members for p in group])

    def find(parameter: nn.Parameter) -> Filling:
        kept: Mapping[str, Any] = next(
            (state["state"][name] for name in names[id(parameter)] if name in state["state"]), {}
        )
        parts = {kind: read_all(value) for kind, value in kept.items() if _is_part(value)}
        return Filling(None, parts, {kind: read_all(value) for kind, value in kept.items() if kind not in parts})

    fill(optimizer.engine, optimizer.inner, find)
    _put_settings(optimizer, state["param_groups"], names)
    if contents.file(DEEPSPEED_LATEST_NAME) is not None:
        _go_on(optimizer.engine, contents)
    elif optimizer.engine.lr_scheduler is not None:
        logger.warning("%s holds no state of DeepSpeed's own schedule: it starts afresh", folder)
    logger.info(
        "%s was written by another number of processes, stage or engine, and put into this one's pieces", folder
    )
    return True


def mend_universal(optimizer: SteppedByEngine, model: nn.Module, folder: str) -> None:
    """Mend what DeepSpeed makes of a universal checkpoint at stage 3.

    It gives every group the settings of the first, and all groups one count of steps, which each of them then moves on.
    """
    state = _by_names(model, optimizer.members, zero_optimizer(ckpt.Contents.of(folder)))
    _put_settings(optimizer, state["param_groups"], _names(model))
    for kept in optimizer.inner.state.values():
        kept.update(
            {kind: value.clone() for kind, value in kept.items() if isinstance(value, Tensor) and not value.dim()}
        )


def _state(contents: ckpt.Contents) -> dict[str, Any] | None:
    if contents.file(DEEPSPEED_LATEST_NAME) is not None:
        return zero_optimizer(contents)
    shards = contents.below(SHARDED_OPTIMIZER_FOLDER)
    if shards.file(METADATA_SUFFIX) is None:
        return whole_optimizer(contents)
    from mainspring.checkpoint import sharded

    return sharded.whole_shards(shards.root, "optimizer")


def _by_names(model: nn.Module, members: Sequence[Sequence[nn.Parameter]], state: dict[str, Any]) -> dict[str, Any]:
    from mainspring.checkpoint.sharded.parameter_names import by_names

    view: Any = SimpleNamespace(param_groups=[{"params": list(group)} for group in members])
    return by_names(model, view, state)


def _names(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter: tied ones have several."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def _refuse_others(state: Mapping[str, Any], trained: Iterable[Sequence[str]]) -> None:
    saved = {name for group in state["param_groups"] for name in group["params"]}
    lacking = [names[0] for names in trained if saved.isdisjoint(names)]
    if lacking:
        raise CheckpointError(
            f"the optimizer's state was saved for {len(saved)} parameters, without {lacking[0]}: what is trained has changed"
        )


def _is_part(value: Any) -> bool:
    return isinstance(value, (Stored, Tensor)) and len(value.shape) > 0


def _put_settings(
    optimizer: SteppedByEngine, saved: Sequence[Mapping[str, Any]], names: Mapping[int, Sequence[str]]
) -> None:
    """Each group has the rate and the other settings that it had."""
    own = optimizer.inner.param_groups
    if len(own) != len(optimizer.members):  # Muon's are made anew, each with settings of its own
        return
    of_name = {name: group for group in saved for name in group["params"]}
    for group, members in zip(own, optimizer.members, strict=True):
        source = next(of_name[name] for name in names[id(members[0])] if name in of_name)
        group.update({key: value for key, value in source.items() if key in group and key != "params"})


def _go_on(engine: Any, contents: ckpt.Contents) -> None:
    """DeepSpeed's own schedule and counts go on."""
    schedule, counts = zero_progress(contents)
    if engine.lr_scheduler is not None and schedule is not None:
        engine.lr_scheduler.load_state_dict(schedule)
    for name, count in counts.items():
        setattr(engine, name, count)
