"""Options that are declared but whose machinery is not here yet: the one list, which only shrinks."""

from __future__ import annotations

from typing import Any

from mainspring.arguments.masking import shown
from mainspring.errors import Problem

OPTIONS: frozenset[str] = frozenset(
    {
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
    }
)
"""Options of which every value but the default is refused."""


def problem(name: str, value: Any, default: Any) -> Problem | None:
    """The complaint about a value that cannot be served yet, or None."""
    if name in OPTIONS:
        if _is_plain(value) and (value == default or (_is_empty(value) and _is_empty(default))):
            return None
        return Problem(name, shown(name, value), "this option is not available yet", "leave it out")
    if name == "report_to" and value:
        return Problem(name, value, "reporting services are not available yet", "set report_to='none'")
    return None


def _is_plain(value: Any) -> bool:
    """Whether it can be compared as a whole: arrays are compared item by item."""
    return value is None or isinstance(value, (str, bool, int, float, list, tuple))


def _is_empty(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, (str, list)) and not value)
