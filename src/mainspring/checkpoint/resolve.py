"""What `resume_from_checkpoint` names: a folder that is whole, or nothing to go on from."""

from __future__ import annotations

import logging
import os
import re

from mainspring.checkpoint.manifest import verify
from mainspring.checkpoint.pickles import scan_folder
from mainspring.checkpoint.search import newest_valid, quarantine
from mainspring.errors import CheckpointError

logger = logging.getLogger(__name__)

_UNPICKLED = re.compile(
    r"((optimizer|scheduler|scaler|callbacks|data_position)\.(pt|bin)|rng_state\w*\.pth|(.*/)?(pytorch|adapter)_model.*\.bin) "
)
"""How the scan's sentences about files begin that a resumed run reads."""


def resolve(wanted: str | os.PathLike[str] | bool | None, output_dir: str | os.PathLike[str]) -> str | None:
    """Return the checkpoint that a run goes on from.

    Args:
        wanted: A checkpoint folder; True for the newest valid one in `output_dir`; "auto" for the same, or a fresh start
            where there is none; None or False for a fresh start.
        output_dir: The run's output folder. With True and "auto", what is in it and newer but not valid is moved aside.

    Returns:
        Its path, or None for a fresh start.

    Raises:
        ValueError: The folder does not exist, or there is no valid checkpoint.
        CheckpointError: The folder is not a valid checkpoint; it is left where it is.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is not True and wanted != "auto":
        return _named(os.fspath(wanted))
    search = newest_valid(output_dir, _reasons)
    for folder, reasons in search.refused:
        quarantine(folder, reasons)
    if search.folder is None and wanted is True:
        told = "".join(f"; {folder.name} was not valid: {'; '.join(reasons)}" for folder, reasons in search.refused)
        raise ValueError(
            f"resume_from_checkpoint=True, but there is no {'valid ' if told else ''}checkpoint in "
            f"output_dir={os.fspath(output_dir)!r}{told}: leave it out to start a new run, or use 'auto'"
        )
    return None if search.folder is None else os.fspath(search.folder)


def _named(folder: str) -> str:
    if not os.path.isdir(folder):
        raise ValueError(f"resume_from_checkpoint={folder!r} is not a folder: name a checkpoint, or use True or 'auto'")
    if reasons := _reasons(folder):
        raise CheckpointError(f"{folder} cannot be resumed from: {'; '.join(reasons)}")
    return folder


def _reasons(folder: str | os.PathLike[str]) -> list[str]:
    """Why a checkpoint is not resumed from: it is not what was written, or a file that is read could execute something.

    A dangerous file that nobody reads is only named: users keep files of their own in checkpoints.
    """
    if reasons := verify(folder):
        return reasons
    dangers = scan_folder(folder)
    for danger in dangers:
        if not _UNPICKLED.match(danger):
            logger.warning("%s: %s; it is not read", os.fspath(folder), danger)
    return [danger for danger in dangers if _UNPICKLED.match(danger)]
