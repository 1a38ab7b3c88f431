"""How DeepSpeed's files are written and read: in the background where checkpoints are, and never unpickled unseen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mainspring.checkpoint.allowed import deepspeed_globals
from mainspring.checkpoint.deferral import write
from mainspring.checkpoint.pickles import dangerous_globals, refusal, refuse
from mainspring.errors import CheckpointError


class Files:
    """What DeepSpeed writes and reads its checkpoints with, instead of its own.

    A write that fails is raised by `check`, once the process has met the others: DeepSpeed's would leave them waiting.

    Args:
        own: DeepSpeed's own, for all the rest.
    """

    def __init__(self, own: Any) -> None:
        self._own = own
        self._failure: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file; while a checkpoint is written in the background, a copy, later."""
        self.attempt(lambda: write(lambda state: self._save(state, path), state_dict))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder."""
        self.attempt(lambda: os.makedirs(path, exist_ok=exist_ok))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read a file.

        Raises:
            CheckpointError: It holds anything but states, which could execute something.
        """
        refuse(path, deepspeed_globals())
        return self._own.load(path, map_location=map_location)

    def attempt(self, step: Callable[[], object]) -> None:
        """Take a step of a save, if none has failed."""
        if self._failure is None:
            try:
                step()
            except Exception as error:  # noqa: BLE001 (raised by `check`)
                self._failure = error

    def check(self) -> None:
        """Raise what went wrong since the last call."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _save(self, state: Any, path: str) -> None:
        with open(path, "wb") as stream:  # through a file of Python's: torch's own hides why a write failed
            torch.save(state, stream)
        if dangers := dangerous_globals(path, deepspeed_globals()):
            name = Path(path).name
            raise CheckpointError(f"{name} could not be read again: it {refusal(dangers)}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def watch_files(engine: Any) -> None:
    """Let an engine write and read by `Files`, unless its configuration has it written by a service of its own."""
    own = engine.checkpoint_engine
    if type(own).__name__ != "TorchCheckpointEngine":
        return
    files = engine.checkpoint_engine = Files(own)
    copy_scripts = engine._copy_recovery_script
    engine._copy_recovery_script = lambda folder: files.attempt(lambda: copy_scripts(folder))


def save_pieces(engine: Any, folder: str, exclude_frozen: bool) -> None:
    """Write DeepSpeed's own checkpoint: the pieces of weights, optimizer and schedule. All processes call it.

    Args:
        engine: The `DeepSpeedEngine`.
        folder: Where to.
        exclude_frozen: Whether to leave out what is not trained.

    Raises:
        OSError: The system refused a write of this process.
    """
    tag = f"global_step{engine.global_steps}"
    engine.save_checkpoint(folder, tag=tag, save_latest=False, exclude_frozen_parameters=exclude_frozen)
    if isinstance(engine.checkpoint_engine, Files):
        engine.checkpoint_engine.check()
    if engine.global_rank == 0:
        Path(folder, "latest").write_text(tag, encoding="utf-8")
