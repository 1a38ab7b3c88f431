"""Runs on one disk or several, begun anew or resumed on another number of processes; each rank writes down what it saw."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from mainspring import TrainerCallback
from tests.helpers import runs


class Seen(TrainerCallback):
    """Notes where torch's generator stands when the first update begins."""

    def __init__(self) -> None:
        self.stream = ""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first batch of an update."""
        if not self.stream:
            self.stream = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()


class Told(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.texts.append(f"{record.levelname} {record.getMessage()}")


def train(name: str, out: Path, resume: Any, options: dict[str, Any], place: str) -> None:
    """Run in the folder `place`, and write `<name>-rank<r>.pt`."""
    told, seen = Told(), Seen()
    for logger in ("mainspring.checkpoint.random_states", "mainspring.checkpoint.resolve"):
        logging.getLogger(logger).addHandler(told)
        logging.getLogger(logger).setLevel(logging.INFO)
    trainer = runs.trainer(out / place, callbacks=[seen], **options)
    error = ""
    try:
        trainer.train(resume_from_checkpoint=resume)
    except ValueError as problem:
        error = str(problem)
    facts = {
        "world": trainer.args.world_size,
        "wrapper": type(trainer.model_wrapped).__name__,
        "weights": runs.weights(trainer),
        "history": runs.history(trainer),
        "stream": seen.stream,
        "told": told.texts,
        "error": error,
        "best": trainer.state.best_model_checkpoint,
    }
    torch.save(facts, out / f"{name}-rank{trainer.args.process_index}.pt")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
