"""Updates whose numbers go wrong on one rank of two; each function is the life of a rank."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist, nn

from mainspring import Trainer
from mainspring.numerics import spikes
from tests.helpers import models
from tests.numerics import runs

NAN, FAR = float("nan"), 1e4
ORDER = torch.randperm(32, generator=torch.Generator().manual_seed(42)).tolist()
"""Of thirty-two samples: eight updates of four, of which rank 0 has the first two samples."""

LATE = 4 * 5 + 3
"""A sample of rank 1, in the sixth update."""

DDP = {"per_device_train_batch_size": 2, "num_train_epochs": 1}
FSDP = {**DDP, "fsdp": True}
ROLLBACK = {"on_loss_spike": "rollback", "loss_spike_rollback_updates": 2, "loss_spike_threshold": 20.0}


def rows(wrong: dict[int, float]) -> Any:
    """Targets by the sample's place in the first epoch."""
    return runs.rows(32, {ORDER[place]: value for place, value in wrong.items()})


def trained(
    folder: Path, wrong: dict[int, float], model: nn.Module | None = None, resume: Path | None = None, **options: Any
) -> dict[str, Any]:
    """What a run has come to: on an error, which one."""
    run = runs.trainer(folder, rows(wrong), model=model, **options)
    found: dict[str, Any] = {"error": None}
    try:
        run.train(resume_from_checkpoint=resume)
    except Exception as error:  # noqa: BLE001 - that is what some runs are about
        found["error"] = f"{type(error).__name__}: {error}"
    return found | outcome(run)


def outcome(run: Trainer) -> dict[str, Any]:
    pieces = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in run.model.parameters()]
    return {
        "kind": run._engine.kind,
        "world": run._engine.world_size,
        "wrapper": type(run.model_wrapped).__name__,
        "step": run.state.global_step,
        "planned": run.state.max_steps,
        "weights": [piece.detach().flatten().tolist() for piece in pieces],
        "buffers": [buffer.tolist() for buffer in run.model.buffers()],
        "counts": {key: runs.logged(run, key) for key in ("nonfinite_steps", "skipped_steps", "clipped_fraction")},
        "losses": runs.losses(run),
        "went back": [log for log in run.state.log_history if "rollback_from" in log],
    }


def resumed(folder: Path, options: dict[str, Any], wrong: dict[int, float]) -> dict[str, Any]:
    """An uninterrupted run, and those that go on from its checkpoints."""
    options = {**options, "save_strategy": "steps", "save_steps": 1, "logging_steps": 3}
    whole = trained(folder / "whole", wrong, **options)
    others = [
        trained(folder / str(step), wrong, resume=folder / "whole" / f"checkpoint-{step}", **options) for step in (3, 4)
    ]
    return {**whole, "resumed": others}


def plain() -> nn.Module:
    torch.manual_seed(3)
    return models.Regressor()


def poisoned() -> nn.Module:
    """With one value that is not finite: in pieces, one rank has it."""
    model = plain()
    next(model.parameters()).data[-1, -1] = NAN
    return model


class Gathers(Trainer):
    """Its loss asks the other process, in each of its forward passes."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = model(**inputs)["loss"]
        every = loss.detach().reshape(1).repeat(2)
        dist.all_reduce(every)
        return loss + 0 * every.nan_to_num().sum()


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "log": lambda out: trained(out, {LATE: NAN}, **DDP, logging_steps=8),
    "skip": lambda out: trained(out, {LATE: NAN}, **DDP, on_nonfinite="skip"),
    "skip, plain": lambda out: trained(out, {LATE: NAN}, plain(), **DDP, on_nonfinite="skip"),
    "skip, accumulation": lambda out: trained(
        out,
        {LATE: NAN},
        plain(),
        **{**DDP, "per_device_train_batch_size": 1},
        gradient_accumulation_steps=2,
        on_nonfinite="skip",
    ),
    "skip, gathers": lambda out: trained(
        out,
        {4 * 5 + 1: NAN},  # rank 1 has found it in its first micro-batch, and rank 0 looks at its second
        plain(),
        kind=Gathers,
        **{**DDP, "per_device_train_batch_size": 1},
        gradient_accumulation_steps=2,
        on_nonfinite="skip",
    ),
    "skip, resumed": lambda out: resumed(out, {**DDP, "on_nonfinite": "skip"}, {4 * 2 + 3: NAN}),
    "raise": lambda out: trained(out, {LATE: NAN}, **DDP, on_nonfinite="raise"),
    "spike": lambda out: trained(out, {LATE: FAR}, **DDP, on_loss_spike="skip", loss_spike_threshold=20.0),
    "rollback": lambda out: trained(out, {LATE: FAR}, **DDP, **ROLLBACK),
    "rollback, resumed": lambda out: resumed(out, {**DDP, **ROLLBACK}, {LATE: FAR}),
    "compressed": lambda out: trained(out, {}, **DDP, on_nonfinite="skip", ddp_comm_hook="powersgd"),
    "poisoned": lambda out: trained(out, {}, poisoned(), **FSDP),
    "fsdp": lambda out: trained(out, {LATE: NAN}, plain(), **FSDP, on_nonfinite="skip"),
    "fsdp, raise": lambda out: trained(out, {LATE: NAN}, plain(), **FSDP, on_nonfinite="raise"),
    "fsdp, log": lambda out: trained(out, {LATE: NAN}, plain(), **FSDP, logging_steps=8),
    "fsdp, rollback": lambda out: trained(out, {}, plain(), **FSDP, **ROLLBACK),
}


def collect(out: Path) -> None:
    """Run every case, and write down what was found."""
    spikes.WARM_UP = 3
    found = {}
    for name, case in CASES.items():
        try:
            found[name] = case(out / name)
        except Exception as error:  # noqa: BLE001 - a refusal is what some are about
            found[name] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
