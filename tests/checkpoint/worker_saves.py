"""Saves checkpoints in a process of its own, for tests that watch its system calls, or have them refused.

    python -m tests.checkpoint.worker_saves once FOLDER      saves checkpoint-20 once
    python -m tests.checkpoint.worker_saves limits FOLDER    saves it under growing limits of the size of a file
    python -m tests.checkpoint.worker_saves calls FOLDER     saves it in children; the k-th uses up as many calls of a kind
                                                             as make its k-th real one the one that is refused

The latter two print, for each save, the number of the error or 0. Whatever else goes wrong is an assertion. To be run for
`calls` by something that refuses call number CALL of each kind in each process.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from mainspring.checkpoint import read_manifest, staged, verify
from tests.helpers import models
from tests.helpers.checkpoints import RUN, facts, names_in, write_files

# Where DeepSpeed is installed, transformers imports it in a save: it prints, and makes calls of its own. So it is done here.
with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
    import_module("deepspeed")

CALL = 200
FAILED = 255
NOWHERE = os.open(os.devnull, os.O_WRONLY)
# One call of each kind that changes nothing, and may fail.
KINDS = {
    "write": lambda: os.write(NOWHERE, b""),
    "fsync": lambda: os.fsync(NOWHERE),
    "ftruncate": lambda: os.ftruncate(NOWHERE, 0),
    "mkdir": lambda: os.mkdir(os.devnull),
    "rename": lambda: os.rename("", ""),
}


def save(folder: Path) -> None:
    with staged(folder / "checkpoint-20", facts()) as stage:
        # A model that writes itself, with a tokenizer; the other state is written by us.
        write_files(stage, model=models.tiny_gpt2(), tokenizer=models.word_tokenizer())


def run_ids(folder: Path) -> set[str]:
    return {manifest.facts.run_id for path in folder.iterdir() if (manifest := read_manifest(path)) is not None}


def errno_of_a_save(folder: Path) -> int:
    """Save; 0, or the number of the error, after which everything must be as it was."""
    before = names_in(folder)
    runs = {path.name: read_manifest(path) for path in folder.iterdir()}
    writers = run_ids(folder)
    try:
        save(folder)
    except OSError as error:
        assert names_in(folder) == before
        assert {path.name: read_manifest(path) for path in folder.iterdir()} == runs
        assert all(verify(path) == [] for path in folder.iterdir())
        return error.errno or -1
    assert {"checkpoint-10", "checkpoint-20"} <= set(names_in(folder))
    assert writers <= run_ids(folder)  # what another run wrote is kept
    assert all(verify(path) == [] for path in folder.iterdir())
    manifest = read_manifest(folder / "checkpoint-20")
    assert manifest is not None
    assert manifest.facts.run_id == RUN
    return 0


def under_limits(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails with EFBIG
    sizes = sorted({path.stat().st_size for path in (folder / "checkpoint-10").rglob("*")})
    for limit in sorted({0, *(size - 1 for size in sizes), *(size // 2 for size in sizes), 1 << 30}):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        print("size", errno_of_a_save(folder), flush=True)


def in_children(folder: Path) -> None:
    new = not (folder / "checkpoint-20").exists()
    disable_progress_bar()  # it writes, too, and its lock is shared with the children
    with tempfile.TemporaryDirectory() as elsewhere:
        save(Path(elsewhere))  # what is imported at first use is then there for all children
    results: dict[str, list[int]] = {}
    for kind in KINDS:
        numbers = results[kind] = []
        while numbers[-2:] != [0, 0]:  # a single refusal may do no harm; two in a row were none
            numbers.append(_in_child(len(numbers) + 1, kind, folder))
            if new:
                shutil.rmtree(folder / "checkpoint-20", ignore_errors=True)
    # At the end: this process has calls that are counted, too.
    print("\n".join(f"{kind} {number}" for kind, numbers in results.items() for number in numbers))


def _in_child(place: int, kind: str, folder: Path) -> int:
    child = os.fork()
    if child == 0:
        os._exit(_refused_at(place, kind, folder))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status != FAILED
    return status


def _refused_at(place: int, kind: str, folder: Path) -> int:
    try:
        for _ in range(CALL - place):
            with contextlib.suppress(OSError):
                KINDS[kind]()
        return errno_of_a_save(folder)
    except BaseException:  # noqa: BLE001 (a child must not go on as its parent)
        traceback.print_exc()
        return FAILED


def main(what: str, folder: str) -> None:
    {"once": save, "limits": under_limits, "calls": in_children}[what](Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
