"""The docstring of an arguments class: its own text and a line per option, put together when somebody reads it."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

from mainspring.arguments.option import groups_of


class OptionsDocstring:
    """A descriptor for `__doc__`.

    Args:
        text: What the class says of itself; the options are put before its `Raises:` section.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, instance: object, owner: type[Any]) -> str:
        summary, _, rest = self._text.partition("    Raises:")
        options = "\n".join(line for title, fields in groups_of(owner).items() for line in _group(title, fields))
        return f"{summary.rstrip()}\n\n{options}\n" + (f"\n    Raises:{rest}" if rest else "")


def _group(title: str, fields: list[dataclasses.Field[Any]]) -> list[str]:
    lines = [
        f"        {field.name} ({field.type}): {field.metadata.get('help', '')}{_default(field)}" for field in fields
    ]
    return [f"    {title}:", *lines]


def _default(field: dataclasses.Field[Any]) -> str:
    default = default_of(field)
    said = field.metadata.get("shown") or repr(default)
    return "" if default in (None, dataclasses.MISSING) else f" Default {said}."


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field as a plain value; `dataclasses.MISSING` where there is none."""
    factory = field.default_factory
    default = field.default if factory is dataclasses.MISSING else factory()
    return default.value if isinstance(default, Enum) else default
