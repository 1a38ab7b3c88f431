"""Tokens are shown nowhere: not in printed or saved forms, nor in errors."""

from __future__ import annotations

from typing import Any


def mask_of(name: str) -> str | None:
    """What stands for the value of an option that is a token; None for other options."""
    return f"<{name.upper()}>" if name.endswith("_token") else None


def shown(name: str, value: Any) -> Any:
    """The value of an option, as an error may show it. A misspelt name counts by what it seems to be."""
    secret = value is not None and "tok" in name and not name.startswith(("include_", "average_"))
    return f"<{name.upper()}>" if secret else value
