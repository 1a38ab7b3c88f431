"""The random states of a checkpoint's processes, for as many processes as there are now."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import torch
import xxhash

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.manifest import read_manifest
from mainspring.checkpoint.names import rng_state_name
from mainspring.checkpoint.torch_files import load_torch
from mainspring.data.random_stream import mixed, seed_generators
from mainspring.seeding import restore_rng

logger = logging.getLogger(__name__)

_FILE = re.compile(r"rng_state(_\d+)?\.pth")


def restore_random_states(
    folder: str | os.PathLike[str], rank: int, world_size: int, *, step: int, stream: int
) -> None:
    """Set this process's random generators to where the checkpoint says they stood.

    Where another number of processes wrote it, they are seeded: with a function of a state that was saved, the step and the
    stream, so that the same resume draws the same numbers each time.

    Args:
        folder: The checkpoint. Where it holds no random states, a warning says so.
        rank: Which process this is.
        world_size: How many there are.
        step: The update at which the checkpoint was written.
        stream: A number that processes share which must draw the same (they hold parts of one layer); else their rank.

    Raises:
        CheckpointError: A file of random states is damaged, or refused.
    """
    contents = Contents.of(folder)
    saved = _saved_by(contents)
    own = contents.file(rng_state_name(rank, world_size))
    others = [file for name in _names(contents) if (file := contents.file(name)) is not None]
    if saved == world_size and own is not None:
        restore_rng(load_torch(own), distributed=world_size > 1)
    elif others and saved != world_size:
        _derive(others[0], step, stream)
        told = (
            "%s was written by %d process(es), and here are %d: process %d draws from its states, step %d and stream %d"
        )
        logger.info(told, os.fspath(folder), saved, world_size, rank, step, stream)
    else:
        told = "%s has no %s: random numbers differ from the uninterrupted run's"
        logger.warning(told, os.fspath(folder), rng_state_name(rank, world_size))


def _saved_by(contents: Contents) -> int:
    """How many processes wrote the checkpoint. The reference does not say: each left a file, on a disk of all."""
    manifest = read_manifest(contents.root)
    names = _names(contents)
    return len(names) if manifest is None else manifest.facts.world_size


def _names(contents: Contents) -> list[str]:
    """The files of random states, the first process's first."""
    found = contents.listed if contents.listed is not None else [path.name for path in contents.root.iterdir()]
    names = {name: match for name in found if (match := _FILE.fullmatch(name))}
    return sorted(names, key=lambda name: int((names[name][1] or "_0")[1:]))


def _derive(file: Path, step: int, stream: int) -> None:
    state: torch.Tensor = load_torch(file)["cpu"]
    seed = mixed(xxhash.xxh3_64_intdigest(state.numpy().tobytes()), step, stream)
    seed_generators(seed)
    torch.manual_seed(seed)  # the devices too
