"""Tokens are shown nowhere: not in printed or saved forms, nor in errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


_TOKEN_IN_TEXT = re.compile(r"""((\w*_token)["']?\s*:\s*["']?)[^\s"',}]+""")
"""A token among settings in text, JSON or what was meant to be."""


def mask_of(name: str) -> str | None:
    """What stands for the value of an option that is a token; None for other options."""
    return f"<{name.upper()}>" if name.endswith("_token") else None


def shown(name: str, value: Any) -> Any:
    """The value of an option, as an error may show it. A misspelt name counts by what it seems to be."""
    if value is not None and "tok" in name and not name.startswith(("include_", "average_")):
        return f"<{name.upper()}>"
    return masked(value)


def masked(value: Any) -> Any:
    """Settings without the tokens that are among them, however deep; anything else as it is."""
    if isinstance(value, str):
        return _TOKEN_IN_TEXT.sub(lambda found: f"{found[1]}{mask_of(found[2])}", value)
    if isinstance(value, Mapping):
        return {key: item and (mask_of(str(key)) or masked(item)) for key, item in value.items()}
    return [masked(item) for item in value] if type(value) is list else value
