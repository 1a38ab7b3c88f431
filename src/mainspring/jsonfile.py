"""Writing JSON files, in one way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any


def write_json(values: Mapping[str, Any], path: str | PathLike[str], indent: int = 2, end: str = "\n") -> None:
    """Write `values` to `path` in UTF-8 with sorted keys; floats so that reading gives the same bits.

    Args:
        values: Plain JSON values.
        path: The file, replaced if it is there.
        indent: Spaces per level.
        end: What follows the closing bracket.
    """
    Path(path).write_text(json.dumps(values, indent=indent, sort_keys=True) + end, encoding="utf-8")
