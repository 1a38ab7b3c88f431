"""One option, said once: default, meaning and limits in a dataclass field that help, docs and validation read."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from mainspring.errors import Problem

Check = Callable[[Any], str | None]
"""Returns a sentence saying what is wrong with a value, or None."""

Reader = Callable[[str, Any], tuple[Any, list[Problem]]]
"""Given the option's name and a value, returns what it means, and what is wrong with it."""


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",  # noqa: A002 - the word that argparse and dataclass parsers use
    *,
    default_factory: Any = dataclasses.MISSING,
    check: Check | None = None,
    choices: type[Enum] | Sequence[str] | None = None,
    json: bool = False,
    record: type | None = None,
    reader: Reader | None = None,
    none: Any = dataclasses.MISSING,
    secret: bool = False,
    shown: str | None = None,
    also: Sequence[type] = (),
    words: str | None = None,
    keyword: bool = False,
) -> Any:
    """Declare an option as a dataclass field.

    Args:
        default: Its default.
        help: What it means, in a sentence.
        default_factory: Makes the default, where it is mutable.
        check: What its value must fulfil, beyond its type.
        choices: The values it may have: an enumeration (values are turned into its members) or names.
        json: Whether JSON text, or the path of a JSON file, may stand for a mapping.
        record: A dataclass that such a mapping is read into.
        reader: Reads such a mapping itself.
        none: What None stands for, where it is no value of its own.
        secret: Whether to keep it out of printed forms.
        shown: What documentation says of the default, where it depends on the installation.
        also: Types of values that are taken although the annotation, which parsers read, does not tell them.
        words: How many words follow on the command line, in argparse's notation, where the annotation does not tell.
            With "?" the bare option means True.
        keyword: Whether it is keyword-only whatever its class says.
    """
    declared = _Declaration(
        help=help,
        check=check,
        choices=choices,
        json=json,
        record=record,
        reader=reader,
        none=none,
        shown=shown,
        also=also,
    )
    if words is not None:
        declared["nargs"] = words
    if words == "?":
        declared["const"] = True
    return dataclasses.field(
        default=default,
        default_factory=default_factory,
        repr=not secret,
        metadata=declared,
        kw_only=True if keyword else dataclasses.MISSING,
    )


class _Declaration(dict[str, Any]):
    """What an option's metadata holds. Other parsers of dataclasses hand `dict(metadata)` to argparse as it is.

    They see what argparse knows; the rest is there for who asks for it by name.
    """

    def keys(self) -> Any:
        return {name: self[name] for name in ("help", "nargs", "const") if name in self}.keys()


def groups_of(cls: type[Any]) -> dict[str, list[dataclasses.Field[Any]]]:
    """The fields of an arguments class under the titles of the groups that declare them, from the most basic on.

    A group is a class of the hierarchy. Its title is the first line of its docstring, or the name of a user's class.
    """
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    groups: dict[str, list[dataclasses.Field[Any]]] = {}
    for group in reversed(cls.__mro__):
        declared = [fields.pop(name) for name in inspect.get_annotations(group) if name in fields]
        if declared:
            ours = group.__module__.startswith("mainspring.")
            title = str(group.__doc__).splitlines()[0].rstrip(".") if ours else group.__name__
            groups.setdefault(title, []).extend(declared)
    return groups


def finite(value: float) -> str | None:
    """A number that something can be counted or multiplied by."""
    return None if math.isfinite(value) else "must be finite"


def positive(value: float) -> str | None:
    """Above 0."""
    return finite(value) if value > 0 else "must be above 0"


def non_negative(value: float) -> str | None:
    """0 or more."""
    return finite(value) if value >= 0 else "must not be negative"


def seconds(value: float) -> str | None:
    """A time that timers hold."""
    return positive(value) if value < 2**31 else "must be below 2**31 seconds"


def below_one(value: float) -> str | None:
    """In [0, 1)."""
    return None if 0 <= value < 1 else "must be at least 0 and below 1"


def unit_interval(value: float) -> str | None:
    """In [0, 1]."""
    return None if 0 <= value <= 1 else "must lie between 0 and 1"


def fits_generators(value: int) -> str | None:
    """A seed that every generator takes."""
    return None if 0 <= value < 2**32 else "must be at least 0 and below 2**32"


def steps_or_share(value: float) -> str | None:
    """A number of updates, or, below 1, a share of all of them."""
    if (complaint := non_negative(value)) is not None:
        return complaint
    if value >= 2**63:
        return "is larger than any run"
    return "is neither a whole number of updates nor a share below 1" if value > 1 and value != int(value) else None


def file_name(value: str) -> str | None:
    """Text that files and folders can be called."""
    try:
        return "has a character that no file name may have" if b"\0" in os.fsencode(value) else None
    except UnicodeEncodeError:
        return "has a character that no file name may have"


def pairs(value: str) -> str | None:
    """`key=value,key=value`."""
    keys = []
    for part in parts_of(value):
        key, equals, _ = part.partition("=")
        if not key or not equals:
            return f"{part!r} is not of the form key=value"
        if key in keys:
            return f"{key!r} is given twice"
        keys.append(key)
    return None


def parts_of(text: str) -> list[str]:
    """What stands between commas; spaces do not count."""
    return [part for part in text.replace(" ", "").split(",") if part]
