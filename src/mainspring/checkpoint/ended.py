"""Whether a run that was stopped had come to its end, or died on its way there.

A checkpoint is written while a stop is being asked for, not when it has been carried out. A run that died in between has to
end there when it is resumed. One that ended is resumed because somebody wants more of it: a callback that stops a run when
its time is up, for example, and the job that goes on with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

ENDED_NAME = ".mainspring.ended"


def note_end(output_dir: str | os.PathLike[str], run_id: str, step: int) -> None:
    """Write down that a run has ended where it was asked to.

    Args:
        output_dir: The run's output folder.
        run_id: The run.
        step: Its last update.
    """
    root = Path(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    new = root / f"{ENDED_NAME}.partial"
    new.write_text(json.dumps({"run_id": run_id, "step": step}) + "\n", encoding="utf-8")
    new.replace(root / ENDED_NAME)


def has_ended(output_dir: str | os.PathLike[str], run_id: str, step: int) -> bool:
    """Whether the run is known to have ended at this update. What cannot be read says nothing."""
    try:
        noted = json.loads((Path(output_dir) / ENDED_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(noted == {"run_id": run_id, "step": step})
