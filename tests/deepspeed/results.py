"""What a process of a launch finds out, kept in a file."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

RANK = int(os.environ.get("RANK", "0"))


class Results:
    """What this process found out, written after each step, so that a failure shows how far it came."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, Any] = {}

    def note(self, name: str, find: Callable[[], Any]) -> None:
        """Keep what `find` returns, or how it failed."""
        started = time.time()
        try:
            self._found[name] = find()
        except Exception:  # noqa: BLE001 (one failure must not hide the others)
            self._found[name] = {"error": traceback.format_exc()[-3000:]}
        self._file.write_text(json.dumps(self._found))
        if os.environ.get("SHOW"):
            print(RANK, name, round(time.time() - started, 2), self._found[name], flush=True)
