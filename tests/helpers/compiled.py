"""Operations that DeepSpeed compiles: each is built once, before the tests that need it, and kept for later runs.

They lie in TORCH_EXTENSIONS_DIR where that is set, else in a folder of the user's cache. It is one for each kind of
processor, since they are built for the one at hand, and for each environment, whose paths are compiled in.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BUILDERS = {"cpu_adam": "CPUAdamBuilder", "async_io": "AsyncIOBuilder"}
"""Operations, with what builds them in DeepSpeed."""

_VARIABLE = "TORCH_EXTENSIONS_DIR"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mainspring-tests")
_DEAD_AFTER = 900.0
"""Seconds after which a lock of torch's, which a killed build leaves, is nobody's."""


def use_folder() -> None:
    """Let every process that this one starts find the operations in the same place."""
    os.environ.setdefault(_VARIABLE, str(_CACHE / _key()))


def why_not(operation: str) -> str | None:
    """What this machine lacks to compile an operation; None: nothing."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "needs a C++ compiler (g++)"
    if operation == "async_io" and not any(Path(root, "libaio.h").exists() for root in _INCLUDES):
        return "needs the header of libaio (libaio-dev)"
    return None


_INCLUDES = ("/usr/include", "/usr/local/include", *filter(None, os.environ.get("CPATH", "").split(os.pathsep)))


def build(operation: str) -> None:
    """Compile an operation, unless it was compiled in this environment before; several processes may ask at once.

    Raises:
        AssertionError: It cannot be compiled; the message ends with what the compiler printed.
    """
    use_folder()
    folder = Path(os.environ[_VARIABLE])
    with _alone(folder):
        _forget_gone(_CACHE)
        mark = folder / f"{operation}.built"
        if mark.exists() and mark.read_text() == _key():
            _forget_lock(folder / operation, dead_after=_DEAD_AFTER)
            return
        _forget_lock(folder / operation, dead_after=0.0 if _CACHE in folder.parents else _DEAD_AFTER)
        _compile(operation)
        mark.write_text(_key())


def _compile(operation: str) -> None:
    code = f"from deepspeed.ops.op_builder import {BUILDERS[operation]} as B; B().load()"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{operation} cannot be compiled:\n{done.stdout[-4000:]}"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process of the tests builds meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment").write_text(sys.prefix)
    with open(folder / "building", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_lock(folder: Path, dead_after: float) -> None:
    """Torch waits for ever for the lock of a build that was killed."""
    lock = folder / "lock"
    if lock.exists() and time.time() - lock.stat().st_mtime > dead_after:
        lock.unlink(missing_ok=True)


def _forget_gone(cache: Path) -> None:
    """What belongs to environments that are no more."""
    for note in cache.glob("*/environment"):
        if not Path(note.read_text()).exists():
            shutil.rmtree(note.parent, ignore_errors=True)


def _key() -> str:
    """Short words for all that a compiled operation depends on."""
    found = [sys.prefix, platform.python_version(), _processor()]
    for package in ("torch", "deepspeed"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def _processor() -> str:
    """Its model, and what it can do."""
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return platform.processor()
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in described.read_text().splitlines() if line.startswith(kinds)}))
