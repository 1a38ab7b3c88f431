"""Train with DeepSpeed on this process of several, and write down what came of it."""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # Muon compiles its steps, which takes a minute

import faulthandler
import hashlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.deepspeed.cases import ALL, Case
from tests.deepspeed.parity import PARITY, one_side
from tests.deepspeed.probes import PROBES
from tests.deepspeed.results import RANK, Results
from tests.deepspeed.runs import SAVED, compile_nothing, facts, series, trainer, weights
from tests.helpers.sides import SUBJECT


def digest(run: Any) -> str:
    """All bits of the whole weights; of an empty string where they lie elsewhere."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(weights(run).items()):
        hashed.update(name.encode() + tensor.float().numpy().tobytes())
    return hashed.hexdigest()


def train(case: Case, out: Path) -> dict[str, Any]:
    """A run with its facts, and what one that goes on from its checkpoint did."""
    run = trainer(out, deepspeed=dict(case.config), **case.options)
    run.train()
    found = {**series(run), **facts(run), "weights": digest(run)}
    if not case.resumes:
        return found
    found["after"] = run.evaluate()["eval_loss"]
    found["predicted"] = list(run.predict(run.eval_dataset).predictions.shape)
    found["files"] = sorted(path.name for path in (out / f"checkpoint-{SAVED}").iterdir())
    again = trainer(out.with_name(f"{out.name}-again"), deepspeed=dict(case.config), **case.options)
    again.train(resume_from_checkpoint=str(out / f"checkpoint-{SAVED}"))
    return {**found, "resumed": {**series(again), "weights": digest(again)}}


def main(folder: Path, names: list[str]) -> None:
    """Every case and every probe."""
    results = Results(folder / f"training-{RANK}.json")
    compile_nothing()
    work: dict[str, Callable[[], Any]] = {
        **{name: partial(train, case, folder / name) for name, case in ALL.items()},
        **{name: partial(probe, folder / name) for name, probe in PROBES.items()},
        **{f"parity_{name}": partial(one_side, SUBJECT, folder / f"parity_{name}", name) for name in PARITY},
    }
    for name, find in work.items():
        if not names or any(part in name for part in names):
            results.note(name, find)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(500, exit=True)
    main(Path(sys.argv[1]), sys.argv[2:])
