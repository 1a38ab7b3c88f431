"""Entering an epoch at any batch."""

from __future__ import annotations

import io
import logging
import pickle
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mainspring.data.drawn import DrawnLoader
from mainspring.data.samplers import DealtBatches

logger = logging.getLogger(__name__)

_LONG = 5.0
"""Seconds of reading from which on they are worth a warning."""


def batches_from(
    loader: Iterable[Any],
    epoch: int,
    skip: int = 0,
    state: Mapping[str, Any] | None = None,
    samples: int | None = None,
) -> Iterator[Any]:
    """The batches of ``epoch``, from batch number ``skip`` on.

    Map-style data is entered at that place without reading what lies before it, and a stream at a ``state`` that it
    saved there. Other streams and loaders of unknown making are read up to it, here and not at the first ``next``:
    whoever restores random states does so after this call.

    Args:
        loader: A loader of ours, of torch, of accelerate, or any iterable of batches.
        epoch: Set on the loader, its samplers and its dataset, wherever there is a ``set_epoch``.
        skip: Batches of this process to leave out.
        state: From :func:`capture_position`, when the run stood there.
        samples: Of the global order, that lie before the place; for a loader that :func:`enters_by_samples`. Default:
            those of ``skip`` batches.

    Returns:
        An iterator that exists already (for a ``DataLoader``: its one draw from torch's global generator is done) but
        from which no batch has been taken.
    """
    set_epoch(loader, epoch)
    if state is not None and _enters(loader, skip, state):
        return iter(loader)
    positioned = _positioned(loader, skip, samples)
    return _read_past(iter(loader), skip) if positioned is None else iter(positioned)


def enters_by_samples(loader: object) -> bool:
    """Whether :func:`batches_from` can enter an epoch of the loader between any two samples of the global order."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    return _follows_its_batch_sampler(loader) and isinstance(batch_sampler, DealtBatches) and not batch_sampler.batched


def capture_position(loader: object) -> dict[str, Any] | None:
    """Where a loader of ours stands in a stream, after the last batch that it handed out.

    Every process of a run gives the same. With map-style data there is nothing to save: the number of batches says it.

    Returns:
        Plain values and tensors, which ``torch.load`` reads with ``weights_only=True``; None where the position cannot
        be saved exactly, so that :func:`batches_from` reads up to it.
    """
    if type(loader) is not DrawnLoader or not isinstance(loader.dataset, IterableDataset):
        return None
    position, obstacle = loader.position(), loader.obstacle()
    if position is not None and not _loads_safely(position):
        position, obstacle = None, "its state_dict() holds objects that are not read from a checkpoint"
    if obstacle is not None and obstacle != loader.told_obstacle:
        loader.told_obstacle = obstacle
        logger.info("the position in the stream is not saved, a resumed run reads up to it: %s", obstacle)
    return position


def _loads_safely(position: dict[str, Any]) -> bool:
    file = io.BytesIO()
    try:
        torch.save(position, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, TypeError, AttributeError):  # what pickling raises for objects that it cannot save
        return False
    return True


def _enters(loader: object, skip: int, state: Mapping[str, Any]) -> bool:
    reason = loader.enter(skip, state) if type(loader) is DrawnLoader else "the loader is not one of ours"
    if reason is not None:
        logger.warning("the saved position in the stream is not used but read up to: %s", reason)
    return reason is None


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


def _positioned(loader: Iterable[Any], skip: int, samples: int | None = None) -> Iterable[Any] | None:
    """A loader that begins after ``skip`` batches without reading them; None if that cannot be had."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    follows = _follows_its_batch_sampler(loader)
    if follows and isinstance(batch_sampler, DealtBatches):
        # 0 too: it withdraws a place that was never gone to.
        batch_sampler.skip(skip) if samples is None else batch_sampler.skip_samples(samples)
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
    """Whether one batch of the loader is one of its batch sampler: known of torch's loader, ours and accelerate's shard.

    Not so of accelerate's dispatcher, which draws a batch for every process; a subclass may do anything.
    """
    if type(loader) in (DataLoader, DrawnLoader):
        return True
    accelerate = sys.modules.get("accelerate.data_loader")
    return (
        accelerate is not None
        and isinstance(loader, accelerate.DataLoaderShard)
        and type(loader.base_dataloader) is DataLoader
    )


def _read_past(batches: Iterator[Any], skip: int) -> Iterator[Any]:
    started = time.monotonic()
    last_read = deque(enumerate(islice(batches, skip), start=1), maxlen=1)
    done, seconds = last_read[0][0] if last_read else 0, time.monotonic() - started
    if done < skip:
        logger.warning("asked to resume after %d batches of the epoch, but the data gave only %d", skip, done)
    else:
        level = logging.WARNING if seconds > _LONG else logging.INFO
        logger.log(level, "read past %d batches in %.1f s to the place where the run stood", done, seconds)
    return batches
