"""Divide models on this process of several, and write down what came of it."""

from __future__ import annotations

import faulthandler
import sys
from functools import partial
from pathlib import Path

from tests.deepspeed.results import RANK, Results
from tests.deepspeed.runs import compile_nothing
from tests.deepspeed.zero3 import PROBES


def main(folder: Path, names: list[str]) -> None:
    """Every probe."""
    results = Results(folder / f"zero3-{RANK}.json")
    compile_nothing()
    for name, probe in PROBES.items():
        if not names or any(part in name for part in names):
            results.note(name, partial(probe, folder / "models", folder / name))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(500, exit=True)
    main(Path(sys.argv[1]), sys.argv[2:])
