"""Train with the reference on DeepSpeed on this process of several, and write down what came of it."""

from __future__ import annotations

import faulthandler
import sys
from functools import partial
from pathlib import Path

from accelerate.state import AcceleratorState

from tests.deepspeed.parity import PARITY, one_side
from tests.deepspeed.results import RANK, Results
from tests.deepspeed.runs import compile_nothing
from tests.helpers.sides import REFERENCE


def main(folder: Path) -> None:
    """Every configuration."""
    results = Results(folder / f"reference-{RANK}.json")
    compile_nothing()
    for name in PARITY:
        AcceleratorState._reset_state()
        results.note(name, partial(one_side, REFERENCE, folder / f"reference_{name}", name))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(200, exit=True)
    main(Path(sys.argv[1]))
