"""Values become instances of the types that an option's annotation allows, where nothing is lost by it."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import types
import typing
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from mainspring.arguments.masking import mask_of, shown
from mainspring.errors import Problem

_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")
_EXACT = frozenset({bool, int, float, str, list, tuple, dict, type(None)})
_LARGEST = 2**63 - 1
"""What torch, files and other libraries hold."""
DEEPEST = 50
"""How many settings may lie inside one another."""


def truth(text: str) -> bool | None:
    """The truth value that a word stands for; None for any other word."""
    word = text.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def accepted_types(annotation: Any) -> frozenset[Any]:
    """The types that an annotation allows, lists and mappings with what is in them; empty where anything goes."""
    if annotation is Any:
        return frozenset()
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [accepted_types(part) for part in typing.get_args(annotation)]
        return frozenset() if not all(parts) else frozenset().union(*parts)
    if origin is typing.Literal:
        return frozenset(type(value) for value in typing.get_args(annotation))
    if origin in (list, dict):
        return frozenset({annotation})
    if origin is not None:
        return frozenset({origin})
    return frozenset({annotation}) if isinstance(annotation, type) else frozenset()


def typed(name: str, value: Any, kinds: frozenset[Any]) -> tuple[Any, Problem | None]:
    """Return `(value as one of these types, None)`, or `(value, what is wrong with it)`.

    Args:
        name: The option.
        value: What was given.
        kinds: As of `accepted_types`.
    """
    if not kinds:
        return value, None
    within = _within(kinds)
    value = exact(value)
    if dict in within and isinstance(value, Mapping):
        return _settings(name, value, within[dict])
    if list in within and isinstance(value, (list, tuple)):
        return _elements(name, value, within[list])
    fits = _fits(value, within)
    read = value if fits else _converted(value, within)
    if read is None and not fits:
        return _wrong(name, value, f"is a {type(value).__name__}, not {_names(within)}", f"give {_names(within)}")
    if complaint := _complaint(read):
        return _wrong(name, value, complaint, "correct it")
    return read, None


def exact(value: Any) -> Any:
    """The plain value of an array or tensor with a single number, and of subclasses of numbers and text."""
    if type(value) in _EXACT:
        return value
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        plain = value.item()
        return exact(plain) if type(plain) is not type(value) else value
    if isinstance(value, str):
        return str.__str__(value)  # an enumeration's own `str()` may be the name of the member
    if isinstance(value, float):
        return float.__float__(value)
    return int.__int__(value) if isinstance(value, int) else value


@functools.cache
def _within(kinds: frozenset[Any]) -> Mapping[type, frozenset[Any]]:
    """Each plain type, and the types of what is in it."""
    return {
        typing.get_origin(kind) or kind: accepted_types(typing.get_args(kind)[-1])
        if typing.get_args(kind)
        else frozenset()
        for kind in kinds
    }


def _names(within: Mapping[type, frozenset[Any]]) -> str:
    names = ["None" if kind is type(None) else kind.__name__ for kind in within]
    return " or ".join(sorted(names))


def _wrong(name: str, value: Any, why: str, fix: str) -> tuple[Any, Problem]:
    value = shown(name, value)
    return value, Problem(name, value, why, fix)


def _fits(value: Any, within: Mapping[type, Any]) -> bool:
    if isinstance(value, bool):
        return bool in within
    if isinstance(value, int) and float in within:
        return True
    return isinstance(value, tuple(within))


def _converted(value: Any, within: Mapping[type, Any]) -> Any:
    """The value as one of the plain types; None where it is none of them."""
    if bool in within and isinstance(value, (str, int)) and (truth_value := truth(str(value))) is not None:
        return truth_value
    for kind in (int, float):
        if kind in within and (number := _number(value, kind)) is not None:
            return number
    if str in within and isinstance(value, os.PathLike):
        return os.fsdecode(value)
    return None


def _number(value: Any, kind: type) -> Any:
    """A number written as text or as another number, where nothing is lost; else None."""
    if isinstance(value, bool) or not (isinstance(value, (str, Real)) or hasattr(value, "__index__")):
        return None
    if kind is int:  # not by way of a float, which has 53 bits
        with contextlib.suppress(TypeError, ValueError):
            return int(value) if isinstance(value, str) else operator.index(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if kind is float:
        return number
    return int(number) if number.is_integer() else None


def _complaint(value: Any) -> str | None:
    """What is wrong with a number, whatever its option means."""
    if isinstance(value, float) and math.isnan(value):
        return "is not a number"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "is larger than any number that can be stored"
    return None


def _elements(name: str, value: Sequence[Any], kinds: frozenset[Any]) -> tuple[Any, Problem | None]:
    """A list whose items are each of one of these types."""
    read = []
    for item in value:
        element, problem = typed(name, item, kinds)
        if problem is not None:
            return _wrong(name, value, f"holds an item that {problem.why}", problem.fix)
        read.append(element)
    return read, None


def _settings(name: str, value: Mapping[Any, Any], kinds: frozenset[Any]) -> tuple[Any, Problem | None]:
    """A dict of settings, each of one of these types."""
    try:
        given = plain_settings(value)
    except ValueError as error:
        return _wrong(name, value, str(error), "write it as JSON could hold it")
    read = {}
    for key, item in given.items():
        read[key], problem = typed(name, item, kinds)
        if problem is not None:
            return _wrong(name, {key: item}, f"{key} {problem.why}", problem.fix)
    return read, None


def plain_settings(value: Any, holders: tuple[int, ...] = ()) -> Any:
    """A copy of settings, however deep, with plain numbers; objects that are neither are kept.

    Args:
        value: A mapping, a sequence, or one setting.
        holders: The identities of the mappings and sequences that it lies in.

    Raises:
        ValueError: JSON could not hold it: a name that is no text, a number that is none, a circle, or something very
            deep.
    """
    if id(value) in holders:
        raise ValueError("holds itself")
    if len(holders) > DEEPEST:
        raise ValueError("holds too many things inside one another")
    holders = (*holders, id(value))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"has a name that is a {type(key).__name__}, not text")
        return {exact(key): plain_settings(_unmasked(key, item), holders) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain_settings(item, holders) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    plain = exact(value)
    if isinstance(plain, float) and math.isinf(plain):
        raise ValueError(f"holds {plain}, which JSON has no number for")
    if complaint := _complaint(plain):
        raise ValueError(f"holds a number that {complaint}")
    return plain


def _unmasked(key: str, item: Any) -> Any:
    """None for the mask of a token: the setting comes from saved options, which hold no tokens."""
    return None if isinstance(item, str) and item == mask_of(key) else item
