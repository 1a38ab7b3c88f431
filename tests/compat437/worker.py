"""The scenario over two processes, in one of them: as it is, and with a row of the table changed. The first saves the records."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from mainspring.arguments.compat import BEHAVIOURS
from tests.compat437.library import MAINSPRING, with_row
from tests.compat437.scenarios import OVER_TWO_PROCESSES, leave, run

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    records = {"4.37": run(OVER_TWO_PROCESSES, MAINSPRING, folder / "run")}
    for row in OVER_TWO_PROCESSES.about:
        with with_row(**{row: getattr(BEHAVIOURS["none"], row)}):
            records[row] = run(OVER_TWO_PROCESSES, MAINSPRING, folder / row)
    if os.environ["RANK"] == "0":
        (folder / "records.json").write_text(json.dumps(records))
    leave()
