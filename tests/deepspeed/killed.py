"""The runs under DeepSpeed that are killed while they save."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from mainspring import TrainerCallback
from tests.deepspeed.runs import compile_nothing, config, facts, trainer, weights
from tests.faults.runs import TIMES, Scenario
from tests.helpers.models import tiny_gpt2
from tests.helpers.ranks import leave

COMMON = {
    "max_steps": 6,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
}


@dataclass(frozen=True)
class Divided(Scenario):
    """A run that DeepSpeed divides, of a model with dropout.

    Attributes:
        stage: Of ZeRO.
    """

    stage: int = 2

    def run(self, folder: Path, *watching: TrainerCallback) -> None:
        """Train to the end, going on from whatever lies in the folder; the first process writes the outcome beside it."""
        compile_nothing()
        torch.manual_seed(11)
        run = trainer(
            folder,
            tiny_gpt2(dropout=0.1),
            callbacks=list(watching),
            deepspeed=config(self.stage),
            **{**COMMON, **self.options},
        )
        run.train(resume_from_checkpoint="auto")
        found = outcome(run)
        if dist.get_rank() == 0:
            folder.with_suffix(".json").write_text(json.dumps(found))
        leave()


def outcome(run: Any) -> dict[str, Any]:
    """What must be the same however often a run was killed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights(run).items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    history = [
        {key: value for key, value in log.items() if not any(time in key for time in TIMES)}
        for log in run.state.log_history
    ]
    known = {name: value for name, value in facts(run).items() if name in ("world_size", "wrapper", "stage")}
    return {
        **known,
        "weights": digest.hexdigest(),
        "history": history,
        "best": [run.state.best_metric, run.state.best_global_step],
        "step": run.state.global_step,
    }
