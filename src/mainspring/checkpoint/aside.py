"""What is kept beside the checkpoints of a run, under a name that no reader takes for one of them."""

from __future__ import annotations

import errno
import os
import re
from itertools import count
from pathlib import Path

from mainspring.checkpoint.names import PREFIX_CHECKPOINT_DIR

DAMAGED = "damaged"
"""It is not what was written."""

OTHER_RUN = "other-run"
"""Its name was needed for a checkpoint of another run."""

_ASIDE = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+\.(?P<kind>{DAMAGED}|{OTHER_RUN})(\.\d+)?")
# What a rename answers where somebody took the new name in between.
_NAME_IS_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


def move_aside(folder: Path, place: Path, kind: str) -> Path:
    """Rename a folder to the first free name `<place>.<kind>`, `<place>.<kind>.2` and so on; nothing is overwritten.

    Args:
        folder: Where it is.
        place: Where it was as a checkpoint.
        kind: Why it is one no longer.

    Returns:
        Where it is now.

    Raises:
        OSError: It could not be renamed.
    """
    for number in count(1):
        aside = place.with_name(f"{place.name}.{kind}" + (f".{number}" if number > 1 else ""))
        if os.path.lexists(aside):
            continue
        try:
            return folder.rename(aside)
        except OSError as error:
            if error.errno not in _NAME_IS_TAKEN:
                raise
    raise AssertionError("unreachable")


def kind_of(name: str) -> str | None:
    """Why a folder of this name was moved aside; None: it was not."""
    found = _ASIDE.fullmatch(name)
    return found["kind"] if found else None
