"""Where DeepSpeed's optimizers have what belongs to a parameter: the numbers they step, and what they remember of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mainspring.errors import CheckpointError


@dataclass(frozen=True)
class Filling:
    """What a parameter is given.

    Attributes:
        weight: Its value in full precision; None: it stays.
        parts: What the optimizer remembers of each of its numbers, by kind.
        alike: What else it remembers: the count of steps.
    """

    weight: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    alike: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Numbers that this process steps as one.

    Attributes:
        owner: The tensor.
        places: Which parameters it has numbers of: the first of them in the parameter, the first in the row, how many.
    """

    owner: Tensor
    places: Sequence[tuple[nn.Parameter, int, int, int]]


@torch.no_grad()
def fill(engine: Any, inner: Optimizer, find: Callable[[nn.Parameter], Filling | None]) -> None:
    """Put numbers into the pieces that lie on this process.

    Args:
        engine: The `DeepSpeedEngine`.
        inner: The torch optimizer inside it.
        find: What a parameter is given; None: nothing.

    Raises:
        CheckpointError: What the optimizer remembers is not of the parameter's size.
    """
    for row in _rows(engine.optimizer, inner):
        for parameter, begin, at, count in row.places:
            filling = find(parameter)
            if filling is None:
                continue
            if filling.weight is not None:
                _put(row.owner, filling.weight, begin, at, count)
            state = inner.state[row.owner]
            for kind, part in filling.parts.items():
                if part.numel() != _size(parameter):
                    raise CheckpointError(
                        f"the optimizer remembers {list(part.shape)} numbers ({kind}) of a parameter with {_size(parameter)}: it "
                        "looks at the shapes of parameters, and cannot go on in pieces; start anew from the weights"
                    )
                if kind not in state:
                    state[kind] = torch.zeros_like(row.owner)
                _put(state[kind], part, begin, at, count)
            state.update({kind: _for(inner, kind, value) for kind, value in filling.alike.items()})


def _put(row: Tensor, value: Tensor, begin: int, at: int, count: int) -> None:
    """Copy some numbers of a whole tensor; those of the last process may be fewer than its place."""
    numbers = value.reshape(-1)[begin : begin + count]
    row.view(-1).narrow(0, at, numbers.numel()).copy_(numbers)


def _for(inner: Optimizer, kind: str, value: Any) -> Any:
    """A value as the optimizer keeps it: torch's count steps in a tensor, DeepSpeed's in a number."""
    if kind != "step":
        return value
    number = float(value)
    of_torch = type(inner).__module__.startswith("torch.")
    return torch.tensor(number, dtype=torch.float32) if of_torch else int(number)


def _size(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _rows(optimizer: Any, inner: Optimizer) -> Iterator[Row]:
    """The rows one after another; one that rests on NVMe is in memory while it is out, and written back after it."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        yield from _of_stage_3(optimizer)
    elif hasattr(optimizer, "_link_all_hp_params"):
        yield from _of_lower_stages(optimizer)
    elif hasattr(optimizer, "fp32_groups_flat"):
        for row, group in zip(optimizer.fp32_groups_flat, optimizer.fp16_groups, strict=True):
            begins = accumulate((p.numel() for p in group), initial=0)
            yield Row(row, [(p, 0, at, p.numel()) for p, at in zip(group, begins, strict=False)])
    else:
        stepped = [group["params"] for group in inner.param_groups]
        for own, group in zip(stepped, getattr(optimizer, "fp16_groups", stepped), strict=True):
            yield from (Row(row, [(p, 0, 0, p.numel())]) for row, p in zip(own, group, strict=True))


def _of_stage_3(optimizer: Any) -> Iterator[Row]:
    for index, group in enumerate(optimizer.fp16_groups):
        places = []
        for parameter in group:
            _, at, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
            places.append((parameter, count * optimizer._get_param_partition_rank(parameter), at, count))
        rests = optimizer._swappable_optimizer_subgroup(index)
        if rests:
            optimizer._optimizer_states_and_gradient_swap_in(index)
        yield Row(optimizer.fp32_partitioned_groups_flat[index], places)
        if rests:
            optimizer._optimizer_states_and_gradient_swap_out(index)


def _of_lower_stages(optimizer: Any) -> Iterator[Row]:
    rows = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition
    groups = getattr(optimizer, "bit16_groups", None) or optimizer.bf16_groups
    for row, group in zip(rows, groups, strict=True):
        places = []
        for parameter in group:
            here = parameter._hp_mapping  # None: all of it is other processes'
            if here is not None:
                own = here.get_hp_fragment_address()
                places.append((parameter, here.lp_fragment_address.start, own.start, own.numel))
        yield Row(row, places)
