"""Orders that follow from the samples' lengths: functions of (seed, epoch, specification).

A specification is all else that an order depends on: batch sizes, number of processes, lengths. It is saved with a
checkpoint, so that an epoch that was begun can be gone on with although the options have changed since.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, Sampler

from mainspring.data.budget import Budget
from mainspring.data.grouping import get_length_grouped_indices
from mainspring.data.lengths import LengthArray, Lengths, digest
from mainspring.data.rebalance import update_batches, updates_of
from mainspring.errors import CheckpointError, OptionError, Problem
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

Batches = list[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Specification:
    """What an order depends on besides seed, epoch, and the lengths themselves.

    Attributes:
        strategy: The value of ``train_sampling_strategy``, or ``"pack_sequences"``.
        batch_size: Samples of a batch of one process, on average; None where tokens are counted.
        accumulation: Batches of an update in one process.
        world_size: Number of processes.
        max_tokens: Padded tokens of a batch with ``"token_budget"``, else None.
        pack_length: Tokens of a row at most with ``"pack_sequences"``, where it was said, else None.
        drop_last: Whether batches are left out that would not be full, or not there for every process.
    """

    strategy: str
    batch_size: int | None = None
    accumulation: int = 1
    world_size: int = 1
    max_tokens: int | None = None
    pack_length: int | None = None
    drop_last: bool = False

    @property
    def share_of_update(self) -> int:
        """Samples of an update in one process, where samples are counted."""
        assert self.batch_size is not None
        return self.batch_size * self.accumulation

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> Specification:
        """The specification in a checkpoint.

        Raises:
            CheckpointError: It is none.
        """
        values: dict[str, Any] = {field.name: saved.get(field.name) for field in fields(cls)}
        if not _is_sound(values):
            raise CheckpointError(f"the order of the samples in the checkpoint, {dict(saved)!r}, is none")
        return cls(**values)


_SIZES = {"token_budget": "max_tokens", "pack_sequences": "pack_length"}
"""What says how large a batch or row is, by strategy; ``batch_size`` for all others."""


def _is_sound(values: Mapping[str, Any]) -> bool:
    """Whether each value is of its kind, and the only size is that which the strategy goes by."""
    if type(values["strategy"]) is not str or type(values["drop_last"]) is not bool:
        return False
    size = _SIZES.get(values["strategy"], "batch_size")
    unsaid = {"batch_size", "max_tokens", "pack_length"} - {size}
    numbers = {"accumulation", "world_size", size}
    if size == "pack_length" and values[size] is None:
        numbers.remove(size)
    whole = all(type(values[name]) is int and values[name] > 0 for name in numbers)
    return whole and all(values[name] is None for name in unsaid)


class LengthOrder(Sampler[Any]):
    """What the orders have in common. Running through one once moves on to the next epoch, ``set_epoch`` goes to any.

    Args:
        lengths: Of the samples.
        specification: What else the order depends on.
        seed: Seed of epoch 0.
    """

    def __init__(self, lengths: Lengths, specification: Specification, seed: int) -> None:
        self.lengths = lengths
        self.seed = seed
        self.epoch = 0
        self._own = specification
        self._kept: tuple[int, Specification] | None = None
        if not lengths.vary:
            lengths.of(0)  # what cannot be measured is refused before training begins

    def set_epoch(self, epoch: int) -> None:
        """Make the next run through the sampler that of ``epoch``."""
        self.epoch = epoch

    def specification_of(self, epoch: int) -> dict[str, Any]:
        """What the order of ``epoch`` depends on, as it is saved; ``keep`` takes it."""
        return {**asdict(self._in(epoch)), "lengths": digest(self.lengths.of(epoch))}

    def keep(self, epoch: int, specification: Mapping[str, Any]) -> None:
        """Give ``epoch``, and only that one, the order of a saved specification.

        Raises:
            OptionError: Another strategy, or samples of other lengths: the order cannot be made again.
            CheckpointError: What was saved is no specification.
        """
        saved = Specification.read(specification)
        if saved.strategy != self._own.strategy:
            raise _lost_order(
                "train_sampling_strategy", self._own.strategy, f"it is {saved.strategy!r} in the checkpoint"
            )
        if specification.get("lengths") != digest(self.lengths.of(epoch)):
            kind = type(self.lengths.dataset).__name__
            raise _lost_order("train_dataset", kind, "its samples had other lengths when the checkpoint was written")
        if saved != self._own:
            logger.warning("epoch %d is gone through to its end in the order that it was begun in", epoch)
        self._kept = epoch, saved

    def is_former(self, epoch: int) -> bool:
        """Whether the order of ``epoch`` is another than that of the options."""
        return self._in(epoch) != self._own

    def _in(self, epoch: int) -> Specification:
        return self._kept[1] if self._kept is not None and self._kept[0] == epoch else self._own

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator(device="cpu").manual_seed(self.seed + epoch)


def _lost_order(option: str, value: object, why: str) -> OptionError:
    fix = "give the former one, or ignore_data_skip=True to begin the epoch anew"
    return OptionError([Problem(option, value, f"{why}, which was written inside an epoch", fix)])


class GroupedOrder(LengthOrder, Sampler[int]):
    """Samples of similar length near each other: :func:`~mainspring.data.grouping.get_length_grouped_indices`."""

    def __len__(self) -> int:
        return len(self.lengths.dataset)

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        size = self._in(epoch).share_of_update
        yield from get_length_grouped_indices(self.lengths.of(epoch), size, generator=self._generator(epoch))
        self.epoch = epoch + 1


class PlannedBatches(LengthOrder, BatchSampler):
    """The batches of an epoch over all processes, in the order in which they are dealt: one to each in every round.

    Attributes:
        batch_size: None, for they differ.
    """

    batch_size = None  # type: ignore[assignment]
    drop_last = False  # the plan has left out what it had to

    def __init__(self, lengths: Lengths, specification: Specification, seed: int) -> None:
        LengthOrder.__init__(self, lengths, specification, seed)
        self._planned: tuple[int, Specification, Batches] | None = None

    def batches_of(self, epoch: int) -> Batches:
        """The batches of ``epoch``, each an array of samples."""
        wanted = epoch, self._in(epoch)
        if self._planned is None or self._planned[:2] != wanted:
            self._planned = *wanted, self._plan(epoch, wanted[1])
        return self._planned[2]

    @abstractmethod
    def _plan(self, epoch: int, known: Specification) -> Batches: ...

    def __len__(self) -> int:
        return len(self.batches_of(self.epoch))

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        for batch in self.batches_of(epoch):
            yield batch.tolist()
        self.epoch = epoch + 1


class BudgetBatches(PlannedBatches):
    """Batches of at most ``max_tokens`` padded tokens; see :mod:`mainspring.data.budget`.

    There are as many of them in every epoch, unless lengths vary by epoch.
    """

    def _plan(self, epoch: int, known: Specification) -> Batches:
        lengths = self.lengths.of(epoch)
        assert known.max_tokens is not None
        _warn_of_long_samples(lengths, known.max_tokens)
        share_out = Budget(known.max_tokens, known.world_size, known.drop_last)
        count = None if self.lengths.vary else share_out.number_of_batches(lengths, self._generator(0))
        return share_out.batches(lengths, self._generator(epoch), count)


def _warn_of_long_samples(lengths: LengthArray, max_tokens: int) -> None:
    too_long = int((lengths > max_tokens).sum())
    if too_long:
        logger.warning_once(
            f"max_tokens_per_batch={max_tokens}: {too_long} of {len(lengths)} samples are longer, up to {lengths.max()} "
            "tokens; each gets a batch of its own"
        )


class RebalancedBatches(PlannedBatches):
    """Updates of as many samples each, cut into micro-batches of nearly equal cost; see :mod:`mainspring.data.rebalance`.

    A last update of too few samples has fewer micro-batches; it repeats samples only where some process would have none.

    Args:
        lengths: Of the samples.
        specification: What else the order depends on.
        seed: Seed of epoch 0.
        repeats: Fill up the last update with samples of the first, as the reference does, until it has all its
            micro-batches.
    """

    def __init__(self, lengths: Lengths, specification: Specification, seed: int, *, repeats: bool = False) -> None:
        super().__init__(lengths, specification, seed)
        self.repeats = repeats

    def _plan(self, epoch: int, known: Specification) -> Batches:
        lengths = self.lengths.of(epoch)
        order = torch.randperm(len(lengths), generator=self._generator(epoch)).numpy()
        update_size = known.share_of_update * known.world_size
        at_least = known.world_size * (known.accumulation if self.repeats else 1)
        return [
            np.asarray(batch)
            for update in updates_of(order, update_size, known.drop_last, at_least)
            for batch in update_batches(
                update, lengths, min(known.accumulation, len(update) // known.world_size), known.world_size
            )
        ]
