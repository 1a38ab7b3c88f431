"""Train sharded models on this process of several, and write down what came of it."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.distributed.fsdp_cases import CASES, ENGINES, FOUR, Case
from tests.distributed.fsdp_models import MODELS
from tests.distributed.fsdp_probes import PROBES
from tests.distributed.fsdp_runs import SAVED, facts, model, trainer, weights

RANK = int(os.environ["RANK"])


class Results:
    """What this process found out, written after each step, so that a failure shows how far it came."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, Any] = {}

    def note(self, name: str, find: Callable[[], Any]) -> None:
        """Keep what `find` returns, or how it failed."""
        try:
            self._found[name] = find()
        except Exception:  # noqa: BLE001 (one failure must not hide the others)
            self._found[name] = {"error": traceback.format_exc()[-3000:]}
        self._file.write_text(json.dumps(self._found))


def train(out: Path, checkpoint: Path | None = None, saves: bool = False, **options: Any) -> dict[str, Any]:
    """A run with its facts; its whole weights become `<out>.pt`."""
    saving = {"save_strategy": "steps", "save_steps": 1} if saves else {}
    run = trainer(out, **saving, **options)
    run.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    state = weights(run)
    if RANK == 0:
        torch.save(state, out.with_suffix(".pt"))
    return facts(run)


def watched(case: Case, out: Path) -> dict[str, Any]:
    """A case, with how often a layer computed forward while it was trained."""
    calls, own = 0, model()

    def count(*_: Any) -> None:
        nonlocal calls
        calls += own.training

    own.transformer.h[0].mlp.act.register_forward_hook(count)
    run = trainer(out, own, fsdp=True, fsdp_config=dict(case.fsdp), **case.options)
    run.train()
    return {**facts(run), "forwards": calls}


def two(out: Path, results: Results) -> None:
    """All that two processes do."""
    for name, case in CASES.items():
        results.note(name, partial(watched, case, out / name))
    for name, options in ENGINES.items():
        results.note(f"saved-{name}", partial(train, out / f"saved-{name}", saves=True, **options))
    for name in ENGINES:
        checkpoint = out / f"saved-{name}" / f"checkpoint-{SAVED}"
        for other, options in ENGINES.items():
            results.note(f"{name}-{other}", partial(train, out / f"{name}-{other}", checkpoint, **options))
    place = out / "four" / "checkpoint-1"
    results.note("fewer", partial(train, out / "fewer", place, saves=True, **ENGINES["shards"]))
    for name, probe in {**PROBES, **MODELS}.items():
        results.note(name, partial(probe, out / "probes" / name))


def four(out: Path, results: Results) -> None:
    """All that four processes do."""
    for name, options in FOUR.items():
        saves = name in ("four", "copies")
        results.note(name, partial(train, out / name, saves=saves, fsdp=True, **options))
    place = out / "copies" / f"checkpoint-{SAVED}"
    results.note("copies_again", partial(train, out / "copies_again", place, fsdp=True, **FOUR["copies"]))


def one(out: Path, results: Results) -> None:
    """What a single process that a launcher started does."""
    results.note("lonely", partial(train, out / "lonely", fsdp=True))
    place = out / "fewer" / f"checkpoint-{SAVED}"
    results.note("fewest", partial(train, out / "fewest", place, fsdp=True))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(280, exit=True)
    work, folder = sys.argv[1], Path(sys.argv[2])
    {"one": one, "two": two, "four": four}[work](folder, Results(folder / f"{work}-{RANK}.json"))
