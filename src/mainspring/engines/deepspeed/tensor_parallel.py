"""AutoTP: neighbouring processes divide the layers of one model, and read the same samples."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn

from mainspring import checkpoint as ckpt
from mainspring.checkpoint.zero.layout import inner_folder
from mainspring.checkpoint.zero.objects import read_state
from mainspring.checkpoint.zero.weights import stage_of
from mainspring.engines.deepspeed.divided import gathering
from mainspring.engines.deepspeed.layers import is_part, together
from mainspring.engines.deepspeed.reading import only_pieces
from mainspring.errors import CheckpointError, NotAvailableError, Problem


def groups_of(size: int) -> Any:
    """Form DeepSpeed's groups of `size` processes to a model; what it asks about them, None where each has a whole one.

    It keeps those of a run before for the process, and would go on with them unasked: gradients would be averaged over too few.
    """
    groups = _groups()
    kept = groups._TENSOR_MODEL_PARALLEL_GROUP
    if kept is not None and dist.get_world_size(kept) != size:
        groups._TENSOR_MODEL_PARALLEL_GROUP = groups._MODEL_PARALLEL_GROUP = groups._DATA_PARALLEL_GROUP = None
    groups.mpu = None
    if size == 1:
        return None
    groups._init_tp_mesh_device(tensor_model_parallel_size=size)
    return groups


def _groups() -> Any:
    return importlib.import_module("deepspeed.utils.groups")


def whole_weights(model: nn.Module, writes: bool) -> dict[str, Tensor]:
    """The weights, put together, by name; {} on processes that do not write. All processes call it."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        with gathering([p for p in own if hasattr(p, "ds_id")], None), together(module):
            if writes:
                found.update((id(p), p.detach().to("cpu", copy=True)) for p in own)
    if not writes:
        return {}
    with only_pieces():
        state = model.state_dict(keep_vars=True)
    return {name: found.get(id(value), value.detach()) for name, value in state.items()}


def norm_of_parts(parameters: Iterable[Tensor], device: torch.device) -> Tensor:
    """The norm of all gradients: of what each process has a part of, and of what all have, once."""
    gradients = [(is_part(p), p.grad) for p in parameters if p.grad is not None]
    parts, others = (
        torch.nn.utils.get_total_norm([grad for part, grad in gradients if part is whether]).float().to(device) ** 2
        for whether in (True, False)
    )
    dist.all_reduce(parts, group=_groups().get_tensor_model_parallel_group())
    return (parts + others).sqrt()


def is_own(engine: Any, folder: str) -> bool:
    """Whether a checkpoint of DeepSpeed's was written by processes that had divided the model, and ZeRO's pieces, as these."""
    inner = inner_folder(ckpt.Contents.of(folder)).root
    models, states = (_parts(inner, kind) for kind in ("model_states", "optim_states"))
    if models.keys() != set(range(engine.mp_world_size)):
        return False
    stage = engine.zero_optimization_stage()
    own = states.get(engine.checkpoint_mp_rank, [])
    if stage == 0 or not own:
        return stage == 0 and not own
    if len(own) != engine.seq_dp_world_size:
        return False
    return bool(stage_of(read_state(own[0])["optimizer_state_dict"]) == stage)


def _parts(folder: Path, kind: str) -> dict[int, list[Path]]:
    """The files of a kind that belong to each part of the model."""
    parts: dict[int, list[Path]] = {}
    for path in sorted(folder.glob(f"*mp_rank_*_{kind}.pt")):
        found = re.search(r"mp_rank_(\d+)_", path.name)
        if found is not None:
            parts.setdefault(int(found[1]), []).append(path)
    return parts


def refuse_states(folder: str, size: int) -> None:
    """Refuse the state of an optimizer that another way of dividing the model has written.

    Raises:
        CheckpointError: Always.
    """
    raise CheckpointError(
        f"{folder} was not written by a run of tp_size={size} with as many processes and the same stage, and what its optimizer "
        "remembers cannot be divided among these: load its weights with from_pretrained and start anew, or resume as it was written"
    )


def refuse_estimates(size: int) -> None:
    """Refuse to reckon what each process keeps of layers that are divided: which are is known when DeepSpeed has done it.

    Raises:
        NotAvailableError: Always.
    """
    why = "what is reckoned of DeepSpeed's engine is of whole layers, and its processes divide them"
    raise NotAvailableError([Problem("deepspeed tensor_parallel.autotp_size", size, why, "estimate without it")])
