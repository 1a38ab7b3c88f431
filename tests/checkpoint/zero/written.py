"""Checkpoints laid out as DeepSpeed lays them out, written without it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


def model_file(shapes: list[dict[str, torch.Size]] | None, module: State, **more: Any) -> dict[str, Any]:
    """What DeepSpeed writes of the model."""
    return {
        "module": OrderedDict(module),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": None if shapes is None else [OrderedDict(group) for group in shapes],
        "frozen_param_shapes": OrderedDict(),
        "shared_params": {},
        "frozen_param_fragments": OrderedDict(),
        "ds_version": "0.19.8",
        **more,
    }


def write_stage_3(folder: Path, groups: list[State], processes: int = 2, on_nvme: tuple[int, ...] = ()) -> None:
    """A checkpoint in which each process has a part of each parameter, filled up with NaN.

    Args:
        folder: Where to.
        groups: The parameters.
        processes: How many wrote it.
        on_nvme: Which groups the optimizer had on NVMe.
    """
    place = begin(folder)
    shapes = [{name: value.shape for name, value in group.items()} for group in groups]
    for rank in range(processes):
        rows = [torch.cat([_part(value, rank, processes) for value in group.values()]) for group in groups]
        flat = [torch.empty(0) if index in on_nvme else row for index, row in enumerate(rows)]
        empty = {name: torch.empty(0) for group in groups for name in group}
        torch.save(model_file(shapes, empty), place / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        state = {"zero_stage": 3, "partition_count": processes, "fp32_flat_groups": flat}
        torch.save({"optimizer_state_dict": state}, place / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        swapped = place / "offloaded_tensors" / f"rank{rank:02d}"
        for index in on_nvme:
            swapped.mkdir(parents=True, exist_ok=True)
            filled = torch.cat([rows[index], torch.full((256 - len(rows[index]) % 256,), float("nan"))])
            (swapped / f"{index}_{index + 7}.tensor.swp").write_bytes(filled.numpy().tobytes())
            (swapped / f"exp_avg-{index}_{index + 7}.tensor.swp").write_bytes(filled.numpy().tobytes())


def write_stage_2(folder: Path, groups: list[State], processes: int = 2, **more: Any) -> None:
    """A checkpoint in which each process has a part of each group.

    Args:
        folder: Where to.
        groups: The parameters.
        processes: How many wrote it.
        more: Further entries of the model's file.
    """
    place = begin(folder)
    shapes = [{name: value.shape for name, value in group.items()} for group in groups]
    module = {name: value for group in groups for name, value in group.items()}
    torch.save(model_file(shapes, module, **more), place / "mp_rank_00_model_states.pt")
    rows = [torch.cat([value.flatten() for value in group.values()]) for group in groups]
    parts = [row.tensor_split(processes) for row in rows]
    for rank in range(processes):
        flat = [part[rank].clone() for part in parts]
        state = {"zero_stage": 2, "partition_count": [processes], "single_partition_of_fp32_groups": flat}
        torch.save({"optimizer_state_dict": state}, place / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def begin(folder: Path, tag: str = "global_step1") -> Path:
    """The folder that `latest` names, empty."""
    place = folder / tag
    place.mkdir(parents=True)
    (folder / "latest").write_text(tag)
    return place


def parameters(*shapes: tuple[int, ...]) -> State:
    """Random numbers, the same each time."""
    generator = torch.Generator().manual_seed(len(shapes))
    return {f"p{index}": torch.randn(shape, generator=generator) for index, shape in enumerate(shapes)}


def _part(value: Tensor, rank: int, processes: int) -> Tensor:
    length = -(-value.numel() // processes)
    filled = torch.full((length * processes,), float("nan"))
    filled[: value.numel()] = value.flatten()
    return filled[rank * length : (rank + 1) * length]
