"""Train with parts of the run elsewhere than on the device, on this process of several, and write down what came of it."""

from __future__ import annotations

import faulthandler
import sys
from functools import partial
from pathlib import Path

from tests.deepspeed import nvme, offload
from tests.deepspeed.results import RANK, Results
from tests.deepspeed.runs import compile_nothing

WORK = {"offload": offload.asked, "nvme": nvme.asked}


def main(folder: Path, work: str, names: list[str]) -> None:
    """Everything of a kind of work."""
    results = Results(folder / f"{work}-{RANK}.json")
    compile_nothing()
    for name, find in WORK[work](folder).items():
        if not names or any(part in name for part in names):
            results.note(name, partial(find, folder / work / name))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(400, exit=True)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
