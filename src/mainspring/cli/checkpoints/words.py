"""How sizes, ages and tables are written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

_UNITS = ("B", "kB", "MB", "GB", "TB")
_AGES = ((86400, "d"), (3600, "h"), (60, "min"))


def size_of(count: int) -> str:
    """A number of bytes: `512 B`, `1.4 GB`."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if value >= 99.5 or not unit else f"{value:.1f} {_UNITS[unit]}"


def age_of(written: datetime, now: datetime | None = None) -> str:
    """How long ago something was written: `5 s`, `3 h`, `12 d`."""
    seconds = int(((now or datetime.now(timezone.utc)) - written).total_seconds())
    for length, unit in _AGES:
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{max(seconds, 0)} s"


def table(rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Rows of texts as aligned columns.

    Args:
        rows: As many texts in each.
        right: Which columns are aligned on the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cell(column: int, text: str) -> str:
        return text.rjust(widths[column]) if column in right else text.ljust(widths[column])

    return "\n".join("  ".join(cell(column, text) for column, text in enumerate(row)).rstrip() for row in rows)
