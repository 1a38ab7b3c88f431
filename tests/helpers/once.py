"""What is dear to make is made once for all processes of a test run, whichever of them asks first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared(factory: pytest.TempPathFactory) -> Path:
    """The folder of this test run, that its processes have in common."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """What `make` wrote into the folder that it was given; while it is at work, other processes wait for it.

    One that failed is tried again by whoever asks next.
    """
    made, done = folder / f"once-{name}", folder / f"once-{name}.done"
    with FileLock(folder / f"once-{name}.lock"):
        if not done.exists():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            make(made)
            done.touch()
    return made
