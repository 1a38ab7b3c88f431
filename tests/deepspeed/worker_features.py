"""Try everything that a run can have beside DeepSpeed on this process of several, and write down what came of it."""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # but where a run is to be compiled

import faulthandler
import sys
from functools import partial
from pathlib import Path

from tests.deepspeed import autotp
from tests.deepspeed.features import WORK
from tests.deepspeed.results import RANK, Results
from tests.deepspeed.runs import compile_nothing


def main(folder: Path, names: list[str]) -> None:
    """Every feature."""
    results = Results(folder / f"features-{RANK}.json")
    compile_nothing()
    for name, find in {**WORK, **autotp.WORK}.items():
        if not names or name in names:
            results.note(name, partial(find, folder / name))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(550, exit=True)
    main(Path(sys.argv[1]), sys.argv[2:])
