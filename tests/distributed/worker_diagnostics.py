"""Look into a model in two processes, and write what each saw."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mainspring import Trainer, TrainingArguments
from mainspring.diagnostics import explain, grad_invariance
from mainspring.seeding import capture_rng
from tests.diagnostics.broken import Model, Root, as_mapping, batches, handing_on, run
from tests.helpers import data, models


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.rand(4, generator=generator) + 0.1, "labels": 0.5} for _ in range(12)]


def trainer(folder: Path, *inside: nn.Module, **options: Any) -> Trainer:
    args = TrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no", max_steps=2, **options
    )
    return Trainer(handing_on(Model(*inside, pack=as_mapping)), args, train_dataset=rows())


def watched_run(folder: Path) -> dict[str, Any]:
    """Two runs, of which one is watched."""
    plain, watched = trainer(folder), trainer(folder, debug="underflow_overflow")
    losses = [one.train().training_loss for one in (plain, watched)]
    same = all(
        torch.equal(one, other) for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True)
    )
    return {
        "wrapper": type(watched.model_wrapped).__name__,
        "world_size": watched.args.world_size,
        "losses": losses,
        "same": same,
        "hooks": sum(len(module._forward_hooks) for module in watched.model.modules()),
    }


def one_looks_while_the_other_waits(rank: int) -> dict[str, Any]:
    """The second process alone has a sample that breaks it; then both train on together."""
    model, given = handing_on(Model(Root())), batches()
    wrapped = DistributedDataParallel(model)
    run(wrapped, given[0])  # as in the midst of an update
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    given[1]["x"][2, 3] = 0.0
    found = None
    if rank == 1:
        states = capture_rng(distributed=True)
        found = str(explain(wrapped, run, given, states, distributed=True))
    kept = all(torch.equal(one, p.grad) for one, p in zip(gradients, model.parameters(), strict=True))
    model.zero_grad()
    run(wrapped, {name: value * (rank + 1) for name, value in given[2].items()})
    sums = [float(parameter.grad.sum()) for parameter in model.parameters()]
    return {"wrapper": type(wrapped).__name__, "found": found, "kept": kept, "sums": sums}


def refused(folder: Path) -> dict[str, str]:
    """What several processes cannot do."""
    errors = {}
    try:
        trainer(folder, fsdp=True, debug="underflow_overflow")
    except ValueError as error:
        errors["fsdp"] = str(error)
    try:
        grad_invariance(trainer(folder))
    except RuntimeError as error:
        errors["invariance"] = str(error)
    return errors


def in_pieces(folder: Path) -> dict[str, str]:
    """A report about a model in pieces says why there is none."""
    args = TrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, report_to="none", save_strategy="no", max_steps=1, fsdp=True
    )
    run_ = Trainer(models.Regressor(), args, train_dataset=data.Items(data.points(16)))
    run_.train()
    return {
        "wrapper": type(run_.model_wrapped).__name__,
        "found": str(explain(run_.model_wrapped, run, batches())),
    }


def main(out: Path) -> None:
    rank = int(os.environ["RANK"])
    results = {
        "watched": watched_run(out / "runs"),
        "explained": one_looks_while_the_other_waits(rank),
        "refused": refused(out / "runs"),
        "pieces": in_pieces(out / "runs"),
    }
    (out / f"rank{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
