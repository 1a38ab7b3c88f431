"""Runs of which one process, or the launcher, is asked to stop.

python -m tests.distributed.worker_preempted FOLDER SIGNAL     started by torchrun: asks torchrun, and trains until it is asked
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.distributed.worker_lost import At
from tests.faults.runs import Scenario, build

PLAIN = {
    "eval_strategy": "no",
    "eval_steps": None,
    "save_steps": 500,
    "load_best_model_at_end": False,
    "logging_steps": 500,
    "warmup_steps": 0,
}


def one_is_asked(folder: Path, asked: str, rank: int, step: int) -> None:
    """A signal to one process alone, at the beginning of an update."""
    signals = At("on_step_begin", step, rank, lambda: signal.raise_signal(signal.Signals[asked]))
    trainer = build(Scenario("asked", PLAIN, callbacks=()), folder, signals)
    assert trainer._engine.kind == "ddp"
    trainer.train()


def launcher_is_asked(folder: Path, asked: str) -> None:
    """The first process asks its launcher in update 3; what comes of it comes while the others train on."""
    asks = At("on_step_begin", 3, 0, lambda: os.kill(os.getppid(), signal.Signals[asked]))
    trainer = build(Scenario("asked", {**PLAIN, "max_steps": 1_000_000}, callbacks=()), folder, asks)
    assert trainer.args.world_size == 2
    trainer.train()


if __name__ == "__main__":
    launcher_is_asked(Path(sys.argv[1]), sys.argv[2])
