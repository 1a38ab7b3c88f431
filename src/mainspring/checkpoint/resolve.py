"""What `resume_from_checkpoint` names: a folder that is whole, or nothing to go on from."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.manifest import damage
from mainspring.checkpoint.pickles import scan_folder
from mainspring.checkpoint.search import newest_valid, quarantine
from mainspring.errors import CheckpointError

logger = logging.getLogger(__name__)

_UNPICKLED = re.compile(
    r"(optimizer|scheduler|scaler|callbacks|data_position\w*)\.(pt|bin)|rng_state\w*\.pth|(.*/)?(pytorch|adapter)_model.*\.bin"
)
"""Files that a resumed run reads as pickles."""


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
    search = newest_valid(output_dir, damage)
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
