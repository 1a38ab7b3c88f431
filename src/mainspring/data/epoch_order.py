"""The order that a loader of ours goes through an epoch in: what of it is done, and how it is gone on with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import SequentialSampler

from mainspring.data.orders import LengthOrder, PlannedBatches
from mainspring.data.packing import PackedOrder
from mainspring.data.samplers import DealtBatches, EpochRandomSampler
from mainspring.errors import CheckpointError


class EpochOrder:
    """The order behind a loader of map-style data.

    Args:
        loader: One that :func:`~mainspring.data.loaders.build_loader` built, with a batch sampler.
    """

    def __init__(self, loader: Any) -> None:
        source = getattr(loader, "source", None)  # where one process reads for all
        dealers = [getattr(part, "batch_sampler", None) for part in (loader, source)]
        self._dealers = [dealer for dealer in dealers if isinstance(dealer, DealtBatches)]
        self._dealt = self._dealers[0]
        self._order: Any = self._dealt.sampler

    @classmethod
    def of(cls, loader: Any) -> EpochOrder | None:
        """That of a loader whose samples are dealt in an order of our own making; None for others."""
        batches = getattr(loader, "batch_sampler", None)
        if not isinstance(batches, DealtBatches):
            return None
        return cls(loader) if not batches.batched or isinstance(batches.sampler, PlannedBatches) else None

    @property
    def is_uneven(self) -> bool:
        """Whether its batches differ in size by more than what the end of an epoch leaves."""
        return isinstance(self._order, (PlannedBatches, PackedOrder))

    def is_entered_anew(self, epoch: int) -> bool:
        """Whether ``epoch`` was begun in rounds, or in an order, that are not those of the options."""
        former = isinstance(self._order, LengthOrder) and self._order.is_former(epoch)
        return former or self._dealt.left_out(epoch) > 0

    def length(self, epoch: int) -> int:
        """Batches in ``epoch`` of the process that has the most."""
        if isinstance(self._order, LengthOrder):
            self._order.set_epoch(epoch)  # workers that read far ahead have moved it on
        return self._dealt.length_of(0)

    def place(self, epoch: int) -> dict[str, Any]:
        """What a number of batches of ``epoch`` means, as it is saved; :meth:`go_on` takes it.

        ``round``: items of the order in a round over all processes. ``left_out``: items before the first round, since
        rounds had another size when the epoch began. ``specification``: what the order depends on besides seed and epoch.
        """
        known = self._order.specification_of(epoch) if isinstance(self._order, LengthOrder) else {}
        return {"round": self._dealt.unit, "left_out": self._dealt.left_out(epoch), "specification": known}

    def samples_before(self, epoch: int, batches: int) -> int:
        """Samples over all processes that lie before this process's batch number ``batches``."""
        items = self._dealt.left_out(epoch) + batches * self._dealt.unit
        if not self.is_uneven:
            return items
        return sum(map(len, self._order.batches_of(epoch)[:items])) if items else 0

    def samples_of(self, epoch: int, first: int, count: int) -> list[list[int]] | None:
        """The samples in this process's batches of ``epoch`` from number ``first`` on, by their places in the data.

        None where the order is not of our making: going through it once more might draw numbers.
        """
        if not isinstance(self._order, (EpochRandomSampler, SequentialSampler, LengthOrder)):
            return None
        dealt = copy.copy(self._dealt)  # whoever is going through the epoch is not to notice
        dealt.sampler = copy.copy(self._order)
        dealt.set_epoch(epoch)
        dealt.skip(first)
        return [list(_flat(batch)) for batch in islice(dealt, count)]

    def go_on(self, epoch: int, batches: int, place: Mapping[str, Any]) -> int:
        """Make ``epoch`` go on after what was done of it, in the order that it was begun in.

        Args:
            epoch: The epoch.
            batches: Batches of each process that were done.
            place: From :meth:`place`, then.

        Returns:
            Batches of this process that lie before its next one.

        Raises:
            OptionError: The order cannot be made again.
            CheckpointError: ``place`` is none.
        """
        round_size, left_out, specification = _read(place)
        if isinstance(self._order, LengthOrder):
            self._order.keep(epoch, specification)
        before, rest = batches, left_out
        if round_size != self._dealt.unit:
            before, rest = divmod(left_out + batches * round_size, self._dealt.unit)
        for dealer in self._dealers:
            dealer.set_epoch(epoch)
            dealer.leave_out(epoch, rest)
        return before


def _flat(batch: Iterable[Any]) -> Iterator[int]:
    """The samples of a batch, of whose rows each may hold several."""
    for item in batch:
        if isinstance(item, (tuple, list)):
            yield from map(int, item)
        else:
            yield int(item)


def _read(place: Any) -> tuple[int, int, Mapping[str, Any]]:
    if not isinstance(place, Mapping):
        place = {"order": place}
    found = place.get("round"), place.get("left_out"), place.get("specification")
    sound = all(type(value) is int for value in found[:2]) and isinstance(found[2], Mapping)
    if not sound or found[0] < 1 or found[1] < 0:
        raise CheckpointError(f"the place in the order of the samples in the checkpoint, {dict(place)!r}, is none")
    return found
