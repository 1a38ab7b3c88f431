"""A copy of all that is trained, in the host's memory, to go back to within a run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_KEPT = 2


@dataclass(frozen=True)
class Subject:
    """What an update changes.

    Attributes:
        model: The model, whose parameters and buffers are meant.
        others: The optimizer, the schedule and, for fp16, the scaler: what has `state_dict` and `load_state_dict`.
    """

    model: nn.Module
    others: Mapping[str, Any]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()
        yield from self.model.named_buffers()

    def copied(self) -> dict[str, Any]:
        """All of it as it is now: plain values, and tensors in the host's memory."""
        states = {name: _copied(other.state_dict()) for name, other in self.others.items()}
        return {"model": {name: _copied(tensor) for name, tensor in self._tensors()}, **states}

    @torch.no_grad()
    def put_back(self, copied: Mapping[str, Any]) -> None:
        """Make all of it what it was. `copied` may be used again."""
        for name, tensor in self._tensors():
            before = copied["model"].get(name)
            if before is None:  # a buffer that the model has made since, for what it can compute again
                continue
            if tensor.shape != before.shape:  # likewise
                tensor.resize_(before.shape)
            tensor.copy_(before)
        for name, other in self.others.items():
            other.load_state_dict(copy.deepcopy(copied[name]))  # which may keep the very tensors that it is given


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return copy.deepcopy(value)


class Snapshot(NamedTuple):
    """A place to go back to.

    Attributes:
        step: Updates made.
        trained: From `Subject.copied`.
        counted: What else is put back: plain values, and tensors.
    """

    step: int
    trained: dict[str, Any]
    counted: dict[str, Any]


class Snapshots:
    """The two newest snapshots of a run, taken every so many updates.

    Args:
        every: How many.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._kept: list[Snapshot] = []

    def is_due(self, step: int) -> bool:
        """Whether one is to be taken after update `step`."""
        newest = self._kept[-1].step if self._kept else None
        return newest is None or (step != newest and step % self._every == 0)

    def take(self, snapshot: Snapshot) -> None:
        """Keep it, and let the oldest go."""
        self._kept = [*self._kept, snapshot][-_KEPT:]

    def before(self, step: int) -> Snapshot:
        """The newest that lies as far back from update `step` as is asked for, or the oldest of all; later ones go."""
        far = [kept for kept in self._kept if kept.step <= step - self._every]
        found = far[-1] if far else self._kept[0]
        self._kept = [kept for kept in self._kept if kept.step <= found.step]
        return found

    def state(self) -> list[dict[str, Any]]:
        """All of them, for a checkpoint."""
        return [kept._asdict() for kept in self._kept]

    def load_state(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Go on with what `state` gave."""
        self._kept = [Snapshot(**kept) for kept in state]
