"""Ask of checkpoints, on this process of several, and write down what came of it."""

from __future__ import annotations

import faulthandler
import sys
from functools import partial
from pathlib import Path

from torch import distributed as dist

from tests.deepspeed.checkpoints import ASKED, SAVES
from tests.deepspeed.results import RANK, Results
from tests.deepspeed.runs import compile_nothing, logged, trainer


def plain(out: Path) -> list[float]:
    """Losses of processes that each hold all of the model, and their checkpoints."""
    run = trainer(out, **SAVES)
    run.train()
    dist.barrier()
    return logged(run)


def main(folder: Path, work: str, names: list[str]) -> None:
    """Everything of a kind of work."""
    results = Results(folder / f"{work}-{RANK}.json")
    compile_nothing()
    if work == "checkpoints":
        results.note("plain", partial(plain, folder / "plain"))
    for name, find in ASKED[work](folder).items():
        if not names or any(part in name for part in names):
            results.note(name, partial(find, folder / work / name))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(550, exit=True)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
