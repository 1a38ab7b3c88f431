"""First phase: what the user wrote becomes what the option means. Nothing is guessed; what cannot be read is a problem."""

from __future__ import annotations

import contextlib
import json
import os
import types
import typing
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from mainspring.arguments.masking import shown
from mainspring.errors import Problem, did_you_mean

_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")


def truth(text: str) -> bool | None:
    """The truth value that a word stands for; None for any other word."""
    word = text.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def accepted_types(annotation: Any) -> frozenset[Any]:
    """The plain types that an annotation allows; empty where anything goes."""
    if annotation is Any:
        return frozenset()
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [accepted_types(part) for part in typing.get_args(annotation)]
        return frozenset() if not all(parts) else frozenset().union(*parts)
    if origin is typing.Literal:
        return frozenset(type(value) for value in typing.get_args(annotation))
    if origin is not None:
        return frozenset({origin})
    return frozenset({annotation}) if isinstance(annotation, type) else frozenset()


def read(name: str, value: Any, kinds: frozenset[Any], choices: Any, is_json: bool) -> tuple[Any, Problem | None]:
    """Return `(value as the option's type, None)`, or `(value, what is wrong with it)`."""
    if value is None and type(None) in kinds:
        return None, None
    if isinstance(choices, type) and issubclass(choices, Enum):
        return _member(name, value, choices)
    if choices is not None and value not in choices:
        return value, _unknown(name, value, choices)
    if is_json and isinstance(value, (str, os.PathLike)):
        return _mapping(name, os.fspath(value))
    return _typed(name, value, kinds)


def _member(name: str, value: Any, choices: type[Enum]) -> tuple[Any, Problem | None]:
    text = value.value if isinstance(value, Enum) else value
    if isinstance(text, str) and text in choices._value2member_map_:
        return choices(text), None
    return value, _unknown(name, value, [str(member.value) for member in choices])


def _unknown(name: str, value: Any, choices: Sequence[str]) -> Problem:
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    return Problem(name, value, f"is not one of {', '.join(choices)}", f"choose one of them{hint}")


def _mapping(name: str, text: str) -> tuple[Any, Problem | None]:
    """JSON text, or the path of a JSON file."""
    source = text
    try:
        if not text.lstrip().startswith("{"):
            source = Path(text).expanduser().read_text(encoding="utf-8")
        parsed = json.loads(source)
    except OSError as error:
        return text, Problem(
            name, text, f"cannot be read ({error.strerror})", "give JSON text, or the path of a JSON file"
        )
    except json.JSONDecodeError as error:
        place = f"{error.msg} at line {error.lineno}, column {error.colno}"
        return text, Problem(name, text, f"is not JSON: {place}", "correct it there")
    if not isinstance(parsed, dict):
        return text, Problem(name, text, "is JSON, but no object", "write it in braces")
    return _plain_values(parsed) if source is text else parsed, None


def _plain_values(value: Any) -> Any:
    """Numbers and truth values that were quoted, as on a command line; everything else as it is."""
    if isinstance(value, dict):
        return {key: _plain_values(item) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def _typed(name: str, value: Any, kinds: frozenset[Any]) -> tuple[Any, Problem | None]:
    if not kinds or _fits(value, kinds):
        return value, None
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:  # a number of numpy's or torch's
        return _typed(name, value.item(), kinds)
    if list in kinds and isinstance(value, tuple):
        return list(value), None
    for kind in (bool, int, float):
        if kind in kinds:
            converted = _converted(value, kind)
            if converted is not None:
                return converted, None
    if str in kinds and isinstance(value, os.PathLike):
        return os.fspath(value), None
    value = shown(name, value)
    names = " or ".join(sorted("None" if kind is type(None) else kind.__name__ for kind in kinds))
    return value, Problem(name, value, f"is a {type(value).__name__}, not {names}", f"give {names}")


def _fits(value: Any, kinds: frozenset[Any]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int) and float in kinds:
        return True
    return isinstance(value, tuple(kinds))


def _converted(value: Any, kind: type) -> Any:
    """A number or truth value written as text or as another number, where nothing is lost; else None."""
    if kind is bool:
        return truth(str(value)) if isinstance(value, (str, int)) else None
    if isinstance(value, bool) or (not isinstance(value, (str, int, float)) and not hasattr(value, "__index__")):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if kind is float:
        return number
    return int(number) if number == number // 1 else None
