"""Loaders that a script made itself: how they began an epoch, so that it can be entered in the middle.

Their order is whatever their sampler makes of it. Most draw it from the global generators when an epoch begins; some
have a generator of their own; torchdata's say where they stand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from mainspring.data.shared import SharedLoader
from mainspring.seeding import capture_host_rng, restore_host_rng

_KEPT = (
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
)


def parts(loader: object) -> list[object]:
    """A loader and all that it is made of, each once: its samplers, theirs, its dataset."""
    samplers = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
    inside = [getattr(sampler, name, None) for sampler in samplers for name in ("batch_sampler", "sampler")]
    innermost = [getattr(sampler, "sampler", None) for sampler in inside]
    found = [loader, *samplers, *inside, *innermost, getattr(loader, "dataset", None)]
    return list({id(part): part for part in found if part is not None}.values())


def draws_its_order(loader: object) -> bool:
    """Whether what comes first depends on where the random generators stand when an epoch begins."""
    if not isinstance(loader, SharedLoader):
        return True
    return any(getattr(part, "draws_globally", False) for part in parts(loader))


def start_of_epoch(loader: object) -> dict[str, Any] | None:
    """What :func:`go_back` needs to begin this epoch once more; None for loaders whose order is a function of it."""
    return {"random": capture_host_rng(), "generators": generators(loader)} if draws_its_order(loader) else None


def go_back(loader: object, start: Mapping[str, Any]) -> None:
    """Bring the random generators, those of the loader too, to the start of an epoch."""
    restore_host_rng(start["random"])
    for part in parts(loader):
        if getattr(part, "draws_globally", False):
            part.forget()  # type: ignore[attr-defined]
    set_generators(loader, start["generators"])


def generators(loader: object) -> list[torch.Tensor]:
    """The states of the generators that a loader, its samplers and its dataset have for themselves."""
    return [generator.get_state() for generator in _generators(loader)]


def set_generators(loader: object, states: Iterable[torch.Tensor]) -> None:
    """Set the states of :func:`generators`; where there are more or fewer generators now, those that are both."""
    for generator, state in zip(_generators(loader), states, strict=False):
        generator.set_state(state)


def _generators(loader: object) -> list[torch.Generator]:
    found = [getattr(part, "generator", None) for part in parts(loader)]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def is_stateful(loader: object) -> bool:
    """Whether a loader says where it stands, as torchdata's do. Accelerate's pass on what the one inside says."""
    inside = getattr(loader, "base_dataloader", loader)
    return hasattr(inside, "state_dict") and hasattr(inside, "load_state_dict")


def enters(loader: object, skip: int, state: Mapping[str, Any]) -> bool:
    """Make the next iterator of a stateful loader go on from where it stood; False where it stood elsewhere."""
    if "loader" not in state or state["batches"] != skip or not is_stateful(loader):
        return False
    loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
    return True


def entered(loader: DataLoader[Any], skip: int) -> Iterator[Any]:
    """The batches of torch's own loader from number ``skip`` on. The order is drawn here, and nothing is read."""
    assert loader.batch_sampler is not None
    rest = _Rest(loader.batch_sampler, skip)
    kept = {name: getattr(loader, name) for name in _KEPT if hasattr(loader, name)}
    if not loader.num_workers:
        kept.update(multiprocessing_context=None, prefetch_factor=None, persistent_workers=False)
    batches = iter(DataLoader(loader.dataset, batch_sampler=rest, num_workers=loader.num_workers, **kept))
    rest.begin()
    return batches


class _Rest:
    """What a batch sampler gives after its first batches, for one pass."""

    def __init__(self, batches: Iterable[list[int]], skip: int) -> None:
        self.batches = batches
        self.skip = skip
        self._rest: Iterator[list[int]] | None = None

    def begin(self) -> Iterator[list[int]]:
        """Pass over the first batches now, unless workers have asked for the next ones already."""
        if self._rest is None:
            self._rest = iter(self.batches)
            deque(islice(self._rest, self.skip), maxlen=0)
        return self._rest

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.begin()
