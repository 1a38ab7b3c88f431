"""Entering an epoch at any batch."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from mainspring.data.samplers import DealtBatches

logger = logging.getLogger(__name__)


def batches_from(loader: Iterable[Any], epoch: int, skip: int = 0) -> Iterator[Any]:
    """The batches of ``epoch``, from batch number ``skip`` on.

    Map-style data is entered at that place without reading what lies before it. Streams and loaders of unknown making
    are read up to it, here and not at the first ``next``: whoever restores random states does so after this call.

    Args:
        loader: A loader of ours, of torch, of accelerate, or any iterable of batches.
        epoch: Set on the loader, its samplers and its dataset, wherever there is a ``set_epoch``.
        skip: Batches of this process to leave out.

    Returns:
        An iterator that exists already (for a ``DataLoader``: its one draw from torch's global generator is done) but
        from which no batch has been taken.
    """
    set_epoch(loader, epoch)
    positioned = _positioned(loader, skip)
    return _read_past(iter(loader), skip) if positioned is None else iter(positioned)


def set_epoch(loader: object, epoch: int) -> None:
    """Call ``set_epoch(epoch)`` on ``loader`` and everything under it that has the method."""
    for part in _parts(loader):
        method = getattr(part, "set_epoch", None)
        if callable(method):
            method(epoch)


def _parts(loader: object) -> list[object]:
    samplers = [getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)]
    inside = [getattr(sampler, name, None) for sampler in samplers for name in ("batch_sampler", "sampler")]
    innermost = [getattr(sampler, "sampler", None) for sampler in inside]
    parts = [loader, *samplers, *inside, *innermost, getattr(loader, "dataset", None)]
    unique = {id(part): part for part in parts if part is not None}
    return list(unique.values())


def _positioned(loader: Iterable[Any], skip: int) -> Iterable[Any] | None:
    """A loader that begins after ``skip`` batches without reading them; None if that cannot be had."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    follows = _follows_its_batch_sampler(loader)
    if follows and isinstance(batch_sampler, DealtBatches):
        batch_sampler.skip(skip)  # 0 too: it withdraws a place that was never gone to
        return loader
    if not skip:
        return loader
    if not follows:
        return None
    if batch_sampler is None or isinstance(getattr(loader, "dataset", None), IterableDataset):
        return None
    from accelerate import skip_first_batches

    return skip_first_batches(loader, skip)  # type: ignore[no-any-return]


def _follows_its_batch_sampler(loader: object) -> bool:
    """Whether one batch of the loader is one of its batch sampler: known of torch's loader and accelerate's shard.

    Not so of accelerate's dispatcher, which draws a batch for every process; a subclass may do anything.
    """
    if type(loader) is DataLoader:
        return True
    accelerate = sys.modules.get("accelerate.data_loader")
    return (
        accelerate is not None
        and isinstance(loader, accelerate.DataLoaderShard)
        and type(loader.base_dataloader) is DataLoader
    )


def _read_past(batches: Iterator[Any], skip: int) -> Iterator[Any]:
    last_read = deque(enumerate(islice(batches, skip), start=1), maxlen=1)
    done = last_read[0][0] if last_read else 0
    if done < skip:
        logger.warning("asked to resume after %d batches of the epoch, but the data gave only %d", skip, done)
    else:
        logger.info("read past %d batches to the place in the epoch where the run stood", done)
    return batches
