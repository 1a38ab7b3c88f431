"""Trains in folders that become read-only, in a process of its own, and prints what came of it as JSON.

python -m tests.faults.worker_read_only permissions FOLDER    permissions forbid writing
python -m tests.faults.worker_read_only mounted FOLDER        file systems are read-only; needs a mount namespace of its own
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.checkpoints import flip
from tests.helpers.runs import history, trainer, weights

from mainspring import Trainer, TrainerCallback

OPTIONS = {"save_steps": 2, "save_total_limit": 2, "eval_strategy": "no"}
_CAPABILITIES_VERSION = 0x20080522
_MAY_WRITE_ANYWHERE = 1 << 1  # CAP_DAC_OVERRIDE

Lock = Callable[[Path], object]


def give_up_privileges() -> None:
    """Let permissions hold for root, too: without this capability it is a user like any other."""
    library = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    library.capget(header, sets)
    for index in range(3):  # effective, permitted, inheritable
        sets[index] &= ~_MAY_WRITE_ANYWHERE
    library.capset(header, sets)


def forbid(folder: Path) -> None:
    """Take the permission to write into a folder."""
    give_up_privileges()
    folder.chmod(0o555)
    assert not os.access(folder, os.W_OK)


def mount(folder: Path) -> None:
    """Show a folder through a read-only mount of itself; what has it open for writing stays unharmed."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


class Locks(TrainerCallback):
    """Makes the run's folder read-only at the end of update 5."""

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            self._lock(Path(args.output_dir))


def outcome(run: Trainer) -> dict[str, Any]:
    """What a run came to."""
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights(run).values()))
    return {"weights": digest.hexdigest(), "history": history(run), "began": run._initial_global_step}


def locked_in_the_middle(lock: Lock, folder: Path) -> dict[str, Any]:
    """A run whose folder becomes read-only when two checkpoints are in it."""
    run = trainer(folder, callbacks=[Locks(lock)], **OPTIONS)
    run.train()
    return outcome(run)


def continued_elsewhere(former: Path, folder: Path) -> dict[str, Any]:
    """A run that goes on from a checkpoint in a read-only folder."""
    run = trainer(folder, **OPTIONS)
    run.train(resume_from_checkpoint=former / "checkpoint-4")
    return outcome(run)


def locked_before(lock: Lock, former: Path, folder: Path) -> dict[str, Any]:
    """A run that goes on from what is in its folder, which is read-only before it begins, and whose newest is damaged."""
    folder.mkdir()
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(former / name, folder / name)
    flip(folder / "checkpoint-4" / "optimizer.pt", 100)
    run = trainer(folder, **OPTIONS)
    lock(folder)
    run.train(resume_from_checkpoint=True)
    return outcome(run)


def main(how: str, root: Path) -> None:
    lock = {"permissions": forbid, "mounted": mount}[how]
    outcomes = {
        "middle": locked_in_the_middle(lock, root / "middle"),
        "elsewhere": continued_elsewhere(root / "middle", root / "elsewhere"),
        "before": locked_before(lock, root / "middle", root / "before"),
    }
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
