"""A loader of one process's share of the data, and what becomes of it where a script prepares it once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader


class Dealt(NamedTuple):
    """How a loader's samples are shared; found as its attribute ``dealt``. Loaders without it give all to everyone.

    Attributes:
        world_size: Number of processes that share them.
        even: Whether the last round is completed with samples from the start.
        apart: Whether each process reads data of its own, rather than its part of what they share.
    """

    world_size: int
    even: bool
    apart: bool = False


class SharedLoader(DataLoader[Any]):
    """A ``DataLoader`` that holds this process's share already.

    Accelerate's ``prepare`` would share it out a second time, and would build another loader around the parts of this
    one. It knows by an attribute that there is nothing left to do, and hands the loader back as it is.

    Attributes:
        dealt: How the data is shared.
        place: Applied to every batch that is handed out; None leaves the batches where they are.
    """

    dealt = Dealt(1, even=True)
    place: Callable[[Any], Any] | None = None
    _is_accelerate_prepared = True

    @property
    def ends_apart(self) -> bool:
        """Whether another process may have more batches, or fewer."""
        if self.dealt.world_size == 1:
            return False
        return self.dealt.apart or not (self.dealt.even or getattr(self.batch_sampler, "drop_last", False))

    def __iter__(self) -> Any:
        return self.placed(super().__iter__())

    def placed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches as they are handed out."""
        return batches if self.place is None else map(self.place, batches)
