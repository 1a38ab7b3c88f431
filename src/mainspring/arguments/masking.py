"""Tokens are shown nowhere: not in printed or saved forms, nor in errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TOKEN_IN_TEXT = re.compile(r"""((\w*_token)["']?\s*:\s*["']?)[^\s"',}]+""")
"""A token among settings in text, JSON or what was meant to be."""


_DEEPEST = 30


def mask_of(name: str) -> str | None:
    """What stands for the value of an option that is a token; None for other options."""
    return f"<{name.upper()}>" if name.endswith("_token") else None


def shown(name: str, value: Any) -> Any:
    """The value of an option, as an error may show it. A misspelt name counts by what it seems to be."""
    if value is not None and "tok" in name and not name.startswith(("include_", "average_", "max_")):
        return f"<{name.upper()}>"
    return masked(value)


def masked(value: Any, depth: int = 0) -> Any:
    """Settings without the tokens that are among them; anything else as it is.

    What lies deeper than settings do is left out: they may hold themselves.
    """
    if isinstance(value, str):
        return _TOKEN_IN_TEXT.sub(lambda found: f"{found[1]}{mask_of(found[2])}", value)
    if depth > _DEEPEST:
        return "..."
    if isinstance(value, Mapping):
        return {key: _masked_item(key, item, depth + 1) for key, item in value.items()}
    return [masked(item, depth + 1) for item in value] if type(value) is list else value


def _masked_item(key: Any, item: Any, depth: int) -> Any:
    mask = mask_of(key) if isinstance(key, str) else None
    empty = item is None or item is False or (isinstance(item, str) and not item)
    return masked(item, depth) if mask is None or empty else mask
