"""Entering an epoch at any batch."""

from __future__ import annotations

import io
import logging
import pickle
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch import distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from mainspring.data.drawn import DrawnLoader
from mainspring.data.foreign_loaders import (
    draws_its_order,
    entered,
    enters,
    generators,
    go_back,
    is_stateful,
    parts,
    set_generators,
)
from mainspring.data.samplers import DealtBatches
from mainspring.data.shared import SharedLoader
from mainspring.data.together import DispatchedLoader
from mainspring.data.uneven import may_end_apart
from mainspring.seeding import RNG_SAFE_GLOBALS, capture_host_rng, restore_host_rng

logger = logging.getLogger(__name__)

_LONG = 5.0
"""Seconds of reading from which on they are worth a warning."""


def batches_from(
    loader: Iterable[Any],
    epoch: int,
    skip: int = 0,
    state: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """The batches of ``epoch``, from batch number ``skip`` on.

    Map-style data is entered at that place without reading what lies before it, and a stream at a ``state`` that it
    saved there. Other streams and loaders of unknown making are read up to it, here and not at the first ``next``:
    whoever restores random states does so after this call.

    Args:
        loader: A loader of ours, of torch, torchdata or accelerate, or any iterable of batches.
        epoch: Set on the loader, its samplers and its dataset, wherever there is a ``set_epoch``.
        skip: Batches of this process to leave out.
        state: From :func:`capture_position`, when the run stood there.

    Returns:
        An iterator that exists already (for a ``DataLoader``: its one draw from torch's global generator is done) but
        from which no batch has been taken; of accelerate's in the middle of an epoch, the first one has been read.
    """
    if isinstance(loader, DispatchedLoader):
        _tell_every_process(loader, epoch)
        return loader.deal(lambda source: batches_from(source, epoch, skip * loader.world_size, state))
    if state is not None and "generators" in state:
        if skip:
            go_back(loader, state["start"])
        else:
            set_generators(loader, state["generators"])
    set_epoch(loader, epoch)
    if skip and state is not None:
        if "state" in state and _enters(loader, skip, state):
            return iter(loader)
        if enters(loader, skip, state):
            batches = iter(loader)
            set_generators(loader, state["generators"])
            return batches
    return _without_state(loader, skip)


def _tell_every_process(loader: DispatchedLoader, epoch: int) -> None:
    """Processes that read nothing need the epoch too: their number of batches may follow from it."""
    random = capture_host_rng()
    set_epoch(loader, epoch)
    if loader.rank:  # an order that is drawn for the epoch is drawn by the process that goes through it
        restore_host_rng(random)


def _without_state(loader: Iterable[Any], skip: int) -> Iterator[Any]:
    if skip and type(loader) is DataLoader and _has_batches_of_indices(loader):
        return entered(loader, skip)
    positioned = _positioned(loader, skip)
    if positioned is None:
        return _read_past(iter(loader), skip, may_be_short=_others_may_go_on(loader))
    batches = iter(positioned)
    if skip and _is_accelerates(loader):  # it begins with its first batch
        batches = chain(list(islice(batches, 1)), batches)
    return batches


def capture_position(loader: object, start: Mapping[str, Any] | None = None, batches: int = 0) -> dict[str, Any] | None:
    """Where a loader stands after the last batch that it handed out, beyond the number of batches.

    Of a stream in a loader of ours, every process gives the same. Of a loader whose order is drawn anew for every epoch,
    or that says itself where it stands, each process gives its own.

    Args:
        loader: As of :func:`batches_from`.
        start: How the epoch began, from :func:`~mainspring.data.foreign_loaders.start_of_epoch`.
        batches: How many batches of it were handed out.

    Returns:
        Plain values and tensors, which are read with ``weights_only=True``; None where there is nothing to save, or
        where the position cannot be saved exactly, so that :func:`batches_from` reads up to it.
    """
    if isinstance(loader, DispatchedLoader):
        return capture_position(loader.source, start, batches)
    if is_own_place(loader):
        return _own_place(loader, start, batches)
    if type(loader) is not DrawnLoader or not isinstance(loader.dataset, IterableDataset) or loader.dealt.apart:
        return None
    position, obstacle = loader.position(), loader.obstacle()
    if position is not None and not _loads_safely(position):
        position, obstacle = None, "its state_dict() holds objects that are not read from a checkpoint"
    if obstacle is not None and obstacle != loader.told_obstacle:
        loader.told_obstacle = obstacle
        logger.info("the position in the stream is not saved, a resumed run reads up to it: %s", obstacle)
    return position


def is_own_place(loader: object) -> bool:
    """Whether what :func:`capture_position` gives is true of one process only."""
    return draws_its_order(loader)


def _own_place(loader: object, start: Mapping[str, Any] | None, batches: int) -> dict[str, Any] | None:
    if start is None:
        return None
    place = {"start": dict(start), "generators": generators(loader)}
    if not is_stateful(loader):
        return place
    said = {"loader": loader.state_dict(), "batches": batches}  # type: ignore[attr-defined]
    if _loads_safely(said):
        return place | said
    logger.info("the state_dict() of the loader holds objects that are not read from a checkpoint: it is not saved")
    return place


def _loads_safely(position: dict[str, Any]) -> bool:
    file = io.BytesIO()
    try:
        torch.save(position, file)
        file.seek(0)
        with torch.serialization.safe_globals(list(RNG_SAFE_GLOBALS)):
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
    for part in parts(loader):
        method = getattr(part, "set_epoch", None)
        if callable(method):
            method(epoch)


def _positioned(loader: Iterable[Any], skip: int) -> Iterable[Any] | None:
    """A loader that begins after ``skip`` batches without reading them; None if that cannot be had."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    follows = _follows_its_batch_sampler(loader)
    if follows and isinstance(batch_sampler, DealtBatches):
        batch_sampler.skip(skip)  # 0 too: it withdraws a place that was never gone to
        return loader
    if not skip:
        return loader
    if not follows or not _has_batches_of_indices(loader):
        return None
    from accelerate import skip_first_batches

    return skip_first_batches(loader, skip)  # type: ignore[no-any-return]


def _has_batches_of_indices(loader: object) -> bool:
    map_style = not isinstance(getattr(loader, "dataset", None), IterableDataset)
    return map_style and getattr(loader, "batch_sampler", None) is not None


def _follows_its_batch_sampler(loader: object) -> bool:
    """Whether one batch of the loader is one of its batch sampler: known of ours and of accelerate's shard.

    Not so of accelerate's dispatcher, which draws a batch for every process; a subclass may do anything.
    """
    return type(loader) in (SharedLoader, DrawnLoader) or _is_accelerates(loader)


def _is_accelerates(loader: object) -> bool:
    accelerate = sys.modules.get("accelerate.data_loader")
    return (
        accelerate is not None
        and isinstance(loader, accelerate.DataLoaderShard)
        and type(loader.base_dataloader) is DataLoader
    )


def _others_may_go_on(loader: object) -> bool:
    return dist.is_available() and dist.is_initialized() and may_end_apart(loader)


def _read_past(batches: Iterator[Any], skip: int, may_be_short: bool) -> Iterator[Any]:
    started = time.monotonic()
    last_read = deque(enumerate(islice(batches, skip), start=1), maxlen=1)
    done, seconds = last_read[0][0] if last_read else 0, time.monotonic() - started
    if done < skip and not may_be_short:
        logger.warning("asked to resume after %d batches of the epoch, but the data gave only %d", skip, done)
    else:
        level = logging.WARNING if seconds > _LONG else logging.INFO
        logger.log(level, "read past %d batches in %.1f s to the place where the run stood", done, seconds)
    return batches
