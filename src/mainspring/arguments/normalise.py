"""First phase: what the user wrote becomes what the option means. Nothing is guessed; what cannot be read is a problem."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import typing
from collections.abc import Sequence
from enum import Enum
from typing import Any

from mainspring.arguments.jsontext import JsonSlipError, read_json, read_text
from mainspring.arguments.masking import masked
from mainspring.arguments.typed import DEEPEST, accepted_types, typed
from mainspring.errors import Problem, did_you_mean


def read(name: str, value: Any, kinds: frozenset[Any], choices: Any, is_json: bool) -> tuple[Any, Problem | None]:
    """Return `(value as the option's type, None)`, or `(value, what is wrong with it)`."""
    if value is None and type(None) in kinds:
        return None, None
    if isinstance(choices, type) and issubclass(choices, Enum):
        return _member(name, _as_chosen(value, [member.value for member in choices]), choices)
    if choices is not None:
        value = _as_chosen(value, choices)
        if not _chosen(value, choices):
            return value, _unknown(name, value, choices)
    elif isinstance(value, str) and {bool, str} <= kinds and value.lower() in ("true", "false"):
        return value.lower() == "true", None
    if is_json and isinstance(value, (str, os.PathLike)):
        value, problem = _mapping(name, os.fsdecode(value))
        if problem is not None:
            return value, problem
    return typed(name, value, kinds)


def read_record(name: str, value: Any, kinds: frozenset[Any], record: type) -> tuple[Any, list[Problem]]:
    """Return `(an instance of the dataclass, [])`, or `(value, what is wrong with it)`.

    Args:
        name: The option.
        value: A mapping, JSON text or the path of a JSON file, or an object of some dataclass with these fields.
        kinds: The types that the option may have.
        record: The dataclass.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given: Any = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        given, problem = read(name, value, kinds, None, True)
        if problem is not None:
            return value, [problem]
    if given is None:
        return None, []
    hints = typing.get_type_hints(record)
    values, problems = {}, []
    for key, item in given.items():
        if key not in hints:
            hint = did_you_mean(str(key), hints)
            problems.append(Problem(name, {key: item}, "there is no such setting", f"leave it out{hint}"))
            continue
        values[key], problem = typed(name, item, accepted_types(hints[key]))
        if problem is not None:
            problems.append(Problem(name, {key: item}, f"{key} {problem.why}", problem.fix))
    return (value, problems) if problems else (record(**values), [])


def _member(name: str, value: Any, choices: type[Enum]) -> tuple[Any, Problem | None]:
    text = value.value if isinstance(value, Enum) else value
    if isinstance(text, str) and text in choices._value2member_map_:
        return choices(text), None
    return value, _unknown(name, value, [str(member.value) for member in choices])


def _unknown(name: str, value: Any, choices: Sequence[str]) -> Problem:
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    return Problem(name, value, f"is not one of {', '.join(choices)}", f"choose one of them{hint}")


def _as_chosen(value: Any, choices: Sequence[Any]) -> Any:
    """The choice that YAML and JSON read as something else: `no` without quotes is False, and `4.37` a number."""
    if value is False:
        return "no" if "no" in choices else value
    small = type(value) in (int, float) and abs(value) < 1000  # no format takes every whole number
    if small and (text := f"{value:g}") in choices:
        return text
    return value


def _chosen(value: Any, choices: Sequence[str]) -> bool:
    return isinstance(value, str) and value in choices  # an array would be compared item by item


def _mapping(name: str, text: str) -> tuple[Any, Problem | None]:
    """JSON text, or the path of a JSON file."""
    inline = text.lstrip().startswith(("{", "[", '"'))
    said = masked(text)
    try:
        parsed = read_json(text if inline else read_text(text))
    except JsonSlipError as error:
        return text, Problem(name, said, f"is not JSON: {error}", "correct it there")
    except (OSError, ValueError) as error:
        if slip := _slip_of_text(text):
            return text, Problem(name, said, f"is neither a file nor JSON: {slip}", "correct it")
        reason = getattr(error, "strerror", None) or error
        return text, Problem(name, text, f"cannot be read ({reason})", "give JSON text, or the path of a JSON file")
    if not isinstance(parsed, dict):
        return text, Problem(name, said, "is JSON, but no object", "write it in braces")
    return _plain_values(parsed) if inline else parsed, None


def _slip_of_text(text: str) -> JsonSlipError | None:
    """Where something that is no file breaks as JSON, if it seems to be meant as that: it has a colon."""
    try:
        if ":" in text:
            read_json(text)
    except JsonSlipError as error:
        return error
    return None


def _plain_values(value: Any, depth: int = 0) -> Any:
    """Numbers and truth values that were quoted, as on a command line; everything else as it is."""
    if isinstance(value, dict) and depth <= DEEPEST:
        return {key: _plain_values(item, depth + 1) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    with contextlib.suppress(ValueError):
        return int(value)
    with contextlib.suppress(ValueError):
        return number if math.isfinite(number := float(value)) else value
    return value
