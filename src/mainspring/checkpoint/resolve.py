"""What `resume_from_checkpoint` names: a folder that is whole, or nothing to go on from."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.manifest import damage
from mainspring.checkpoint.pickles import scan_folder
from mainspring.checkpoint.search import Search, newest_valid, quarantine
from mainspring.checkpoint.together import Disk, OneDisk, Processes, by_writers
from mainspring.errors import CheckpointError

logger = logging.getLogger(__name__)

_UNPICKLED = re.compile(
    r"(optimizer|scheduler|scaler|callbacks|data_position\w*)\.(pt|bin)|rng_state\w*\.pth"
    r"|(.*/)?(pytorch|adapter)_model.*\.bin|(pytorch_model_fsdp|optimizer)_0/(\.metadata|.*\.distcp)"
    r"|[^/]+/([^/]+_(model|optim)_states|zero/.*)\.pt"
)
"""Files that a resumed run reads as pickles, itself or through DeepSpeed."""


def resolve(wanted: str | os.PathLike[str] | bool | None, output_dir: str | os.PathLike[str]) -> str | None:
    """Return the checkpoint that a run goes on from.

    Args:
        wanted: A checkpoint folder; True for the newest valid one in `output_dir`, of the run that wrote last; "auto" for
            the same, or a fresh start where there is none; None or False for a fresh start.
        output_dir: The run's output folder. With True and "auto", what is in it and newer but not valid is moved aside.

    Returns:
        Its path, or None for a fresh start.

    Raises:
        ValueError: The folder does not exist, or there is no valid checkpoint.
        CheckpointError: The folder is not a valid checkpoint; or the one that was found is intact, but holds what could
            execute something, or was written by a newer version. It is left where it is.
        OSError: A file of a checkpoint could not be read, for a reason outside it: nothing is moved for that.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is not True and wanted != "auto":
        return _named(os.fspath(wanted))
    return _taken(newest_valid(output_dir, damage), wanted, output_dir)


def resolve_together(
    wanted: str | os.PathLike[str] | bool | None, output_dir: str | os.PathLike[str], processes: Processes, disk: Disk
) -> str | None:
    """`resolve` for all processes of a run, which call it together.

    Where each machine has its own disk, the newest checkpoint counts that every one of them has and that is valid on all.

    Args:
        wanted: As in `resolve`.
        output_dir: As in `resolve`, on this process's disk.
        processes: Those of the run.
        disk: Whose disk is whose.

    Returns:
        The checkpoint's path on this process's disk, or None for a fresh start. Errors are those of `resolve`, raised on
        every process.
    """
    if isinstance(disk, OneDisk) or (wanted is not True and wanted != "auto"):
        found: str | None = by_writers(lambda: resolve(wanted, output_dir), processes, disk)
        return found
    search = _on_every_disk(output_dir, processes, disk)
    taken: str | None = by_writers(lambda: _taken(search, wanted, output_dir), processes, disk)
    return taken


def _on_every_disk(output_dir: str | os.PathLike[str], processes: Processes, disk: Disk) -> Search:
    """What a search on this process's disk comes to that looks no further than what all disks have."""
    until: tuple[str | None, int] | None = None
    refused: dict[Path, list[str]] = {}
    while True:
        search: Search = by_writers(partial(newest_valid, output_dir, damage, until), processes, disk)
        refused.update(search.refused)
        places: list[tuple[str | None, int] | None] = processes.every(search.place)
        if None in places:
            if search.folder is not None:
                logger.warning("%s is not resumed from: another machine has nothing that belongs to it", search.folder)
            return replace(search, folder=None, refused=list(refused.items()))
        if len(set(places)) == 1:
            return replace(search, refused=list(refused.items()))
        run = places[0][0]  # type: ignore[index]
        until = run, min(place[1] for place in places if place is not None and place[0] == run)
        logger.warning(
            "the newest checkpoints of the machines differ: looking for what all have, up to step %d", until[1]
        )


def _taken(search: Search, wanted: str | os.PathLike[str] | bool, output_dir: str | os.PathLike[str]) -> str | None:
    """The folder that a search came to, once what is not valid is out of the way."""
    for folder, reasons in search.refused:
        quarantine(folder, reasons)
    if search.folder is None and wanted is True:
        told = "".join(f"; {folder.name} was not valid: {'; '.join(reasons)}" for folder, reasons in search.refused)
        raise ValueError(
            f"resume_from_checkpoint=True, but there is no {'valid ' if told else ''}checkpoint in "
            f"output_dir={os.fspath(output_dir)!r}{told}: leave it out to start a new run, or use 'auto'"
        )
    return None if search.folder is None else _found(search.folder, search.others)


def _found(folder: Path, others: Sequence[Path]) -> str:
    if others:
        logger.warning(
            "%s is the newest of the run that wrote last; of another run are here, and are left alone: %s",
            folder,
            ", ".join(other.name for other in others),
        )
    if refused := _refused(folder):
        raise CheckpointError(
            f"{folder} is what was written, but it is not resumed from: {'; '.join(refused)}. If a type of your own is in it, "
            f"allow it with torch.serialization.add_safe_globals; to go on from another checkpoint, name that one"
        )
    return os.fspath(folder)


def _named(folder: str) -> str:
    if not os.path.isdir(folder):
        raise ValueError(f"resume_from_checkpoint={folder!r} is not a folder: name a checkpoint, or use True or 'auto'")
    if reasons := damage(folder) or _refused(folder):
        raise CheckpointError(f"{folder} cannot be resumed from: {'; '.join(reasons)}")
    return folder


def _refused(folder: str | os.PathLike[str]) -> list[str]:
    """The files that a resumed run would read and that could execute something.

    A dangerous file that nobody reads is only named: users keep files of their own in checkpoints.
    """
    contents, refused = Contents.of(folder), []
    for found in scan_folder(folder):
        if _UNPICKLED.fullmatch(found.name) and contents.file(found.name) is not None:
            refused.append(str(found))
        else:
            logger.warning("%s: %s; it is not read", os.fspath(folder), found)
    return refused
