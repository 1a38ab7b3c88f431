"""What each process of a run keeps whose weights, gradients and optimizer states ZeRO divides: reckoned, not tried."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mainspring.measuring.estimate import bytes_of_storages
from mainspring.measuring.optimizer_state import readable_bytes

_FULL = 4
"""Bytes of a number in full precision."""


@dataclass(frozen=True)
class Kept:
    """Bytes of one process in one place.

    Attributes:
        parameters: The weights that the model computes with, and its buffers.
        gradients: Those that wait for a step.
        weight_copies: Weights in full precision that the optimizer steps.
        optimizer_states: After a step.
    """

    parameters: int = 0
    gradients: int = 0
    weight_copies: int = 0
    optimizer_states: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, one.name) for one in fields(self))


@dataclass(frozen=True)
class DividedMemoryEstimate:
    """What one process keeps for weights, gradients and states, and what DeepSpeed's own estimators say.

    What forward and backward passes take beside it is not in it, nor buckets and buffers of the engine.

    Attributes:
        stage: Of ZeRO.
        processes: That it divides over.
        device: What lies on the device.
        host: What lies in the memory of the host.
        disk: What rests on a disk.
        deepspeed: Bytes by DeepSpeed's estimator for this stage, `(on a device, on a machine's host)`; None: it has none for
            the stages 0 and 1.
        tables: What DeepSpeed's estimators print for this model on these machines: stages 2 and 3, with and without offload.
    """

    stage: int
    processes: int
    device: Kept
    host: Kept = field(default_factory=Kept)
    disk: Kept = field(default_factory=Kept)
    deepspeed: tuple[int, int] | None = None
    tables: str = ""

    def __str__(self) -> str:
        lines = [
            f"each of {self.processes} processes at stage {self.stage}, without what forward and backward passes take"
        ]
        for place in ("device", "host", "disk"):
            lines += _lines(place, getattr(self, place))
        if self.deepspeed is not None:
            device, host = map(readable_bytes, self.deepspeed)
            lines.append(f"by DeepSpeed's estimator: {device} on each device, {host} on each machine's host")
        return "\n".join([*lines, *filter(None, [self.tables.rstrip()])])


def _lines(place: str, kept: Kept) -> list[str]:
    if not kept.total:
        return []
    shown = {one.name.replace("_", " "): getattr(kept, one.name) for one in fields(kept)}
    return [f"{place + ': ' + name:<26}{readable_bytes(size):>12}" for name, size in shown.items() if size]


@dataclass(frozen=True)
class Division:
    """How ZeRO divides and where things lie.

    Attributes:
        stage: 0 to 3.
        processes: How many share.
        number: Bytes of a number that the model computes with.
        whole_below: Stage 3 keeps parameters of at most so many numbers whole beside their pieces, once they were used.
        parameters_on: "device", "host" or "disk".
        states_on: The same of what the optimizer steps and remembers, and of gradients that wait for it.
    """

    stage: int
    processes: int
    number: int = _FULL
    whole_below: int = 0
    parameters_on: str = "device"
    states_on: str = "device"


def sizes_of(model: nn.Module) -> list[tuple[int, bool]]:
    """Numbers of each parameter, whole where it lies in pieces, and whether it is trained; shared ones count once."""
    return [(int(getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()]


def largest_layer(model: nn.Module) -> int:
    """Most numbers that one module has by itself."""
    owns = (sum(int(getattr(p, "ds_numel", p.numel())) for p in m.parameters(recurse=False)) for m in model.modules())
    return max(owns, default=0)


def divided_bytes(model: nn.Module, state_per_number: float, division: Division) -> dict[str, Kept]:
    """What a process keeps, by its place: "device", "host" or "disk".

    Args:
        model: The model, as it was made.
        state_per_number: Bytes that the optimizer remembers for each number.
        division: How it is divided.
    """
    sizes = sizes_of(model)
    trained = [count for count, is_trained in sizes if is_trained]
    buffers = bytes_of_storages(list(model.buffers()))
    weights, whole = _weights([count for count, _ in sizes], division)
    steps = _shared(trained, division) if division.stage else sum(trained)
    copies = _FULL * steps if division.stage or division.number < _FULL else 0
    gradients = division.number * (steps if division.stage >= 2 else sum(trained))
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    found["device"]["parameters"] += buffers + whole
    found[division.parameters_on]["parameters"] += weights
    found[division.states_on if division.stage >= 2 else "device"]["gradients"] += gradients
    found[division.states_on]["weight_copies"] += copies
    found[division.states_on]["optimizer_states"] += round(steps * state_per_number)
    return {place: Kept(**kept) for place, kept in found.items()}


def _weights(sizes: Iterable[int], division: Division) -> tuple[int, int]:
    """Bytes of the weights as they rest here, and of what stage 3 keeps whole beside them."""
    sizes = list(sizes)
    if division.stage < 3:
        return division.number * sum(sizes), 0
    whole = sum(count for count in sizes if count <= division.whole_below)
    return division.number * _shared(sizes, division), division.number * whole


def _shared(sizes: Iterable[int], division: Division) -> int:
    """Numbers of one process's share: stage 3 divides each parameter, the lower stages all of them in a row."""
    if division.stage == 3:
        return sum(math.ceil(count / division.processes) for count in sizes)
    return math.ceil(sum(sizes) / division.processes)


_TRIED = 1 << 14
"""Numbers of the parameter that an optimizer is tried on: large enough that 8-bit states are used."""


def state_per_number(make: Any) -> float:
    """Bytes that an optimizer remembers for each number of a flat parameter, as ZeRO makes them: found by one step.

    Args:
        make: Makes, of a list of parameters, the optimizer.
    """
    parameter = nn.Parameter(torch.zeros(_TRIED))
    optimizer = make([parameter])
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [value for value in optimizer.state[parameter].values() if torch.is_tensor(value) and value.numel() > 1]
    return bytes_of_storages(kept) / _TRIED


def another_of(optimizer: Optimizer) -> Any:
    """Makes an optimizer like this one, of other parameters; this one stays as it is."""

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        other = copy.copy(optimizer)
        other.state = defaultdict(dict)
        other.param_groups = [{**optimizer.param_groups[0], "params": parameters}]
        return other

    return make
