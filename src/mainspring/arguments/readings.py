"""How the words after an option on the command line become a value of the option's annotated type."""

from __future__ import annotations

import inspect
import types
import typing
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from mainspring.arguments.jsontext import JsonSlipError, read_json
from mainspring.arguments.typed import truth
from mainspring.errors import did_you_mean

Word = Callable[[str], Any]
"""Turns one word into a value, or raises what argparse reports: ValueError, TypeError, ArgumentTypeError."""


@dataclass(frozen=True)
class Reading:
    """How one option is read.

    Attributes:
        word: Reads one word.
        choices: The values that a word may stand for; None for any.
        flag: Whether the option may stand without a word, for True.
        many: Whether it takes several words, as a list.
        one_or_many: Whether one word alone is a value of its own rather than a list of one.
    """

    word: Word
    choices: tuple[Any, ...] | None = None
    flag: bool = False
    many: bool = False
    one_or_many: bool = False


TEXT = Reading(str)
"""As it stands."""


def reading_of(annotation: Any, choices: Any = None) -> Reading:
    """How an option with this annotation is read.

    Args:
        annotation: A resolved annotation: a class, `Optional`, a union, `Literal`, an enumeration, a list, a mapping.
        choices: What the option's declaration says of its values: an enumeration or their sequence.
    """
    kinds = [kind for kind in _members(annotation) if kind is not type(None)]
    lists = [kind for kind in kinds if _base(kind) is list]
    plain = [kind for kind in kinds if _base(kind) is not list]
    if choices is not None:
        among = _choice_among(_values_of(choices) if inspect.isclass(choices) else tuple(choices))
        return replace(among, many=bool(lists) and not plain)
    if not lists:
        return _reading_of_one(plain)
    if not plain:
        element = reading_of(*(typing.get_args(lists[0]) or (str,)))
        return Reading(element.word, element.choices, many=True)
    return Reading(_reading_of_one(plain).word, flag=bool in plain, many=True, one_or_many=True)


def _reading_of_one(kinds: list[Any]) -> Reading:
    if any(_is_enumeration(kind) for kind in kinds):  # `SchedulerType | str`: the text is the member's spelling
        kinds = [kind for kind in kinds if kind is not str]
    if str in kinds:  # a mapping that may be text stays text: whoever declared it reads it
        kinds = [kind for kind in kinds if _base(kind) is not dict]
    if len(kinds) == 1 and (values := _values_of(kinds[0])):
        return _choice_among(values)
    return Reading(_first_of([_word(kind) for kind in sorted(kinds, key=_rank)]), flag=bool in kinds)


def _choice_among(values: tuple[Any, ...]) -> Reading:
    return Reading(_choice(values), choices=values)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The parts of a union, however nested; of anything else, itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for part in typing.get_args(annotation) for kind in _members(part))
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return (annotation,)


def _base(kind: Any) -> Any:
    """The class behind a generic alias: `list` of `list[int]`; abstract sequences and mappings count as these."""
    base = typing.get_origin(kind) or kind
    if not inspect.isclass(base) or issubclass(base, str):
        return base
    if base in (list, Sequence):
        return list
    return dict if issubclass(base, typing.get_origin(typing.Mapping)) else base  # type: ignore[arg-type]


def _is_enumeration(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, Enum)


def _values_of(kind: Any) -> tuple[Any, ...]:
    """The values that an enumeration or a `Literal` names; none for other types."""
    if _is_enumeration(kind):
        return tuple(member.value for member in kind)
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def _rank(kind: Any) -> int:
    """What is tried first: the stricter type. Anything is text."""
    order = (bool, int, float)
    return 99 if kind is str or kind is Any else order.index(kind) if kind in order else 50


def _word(kind: Any) -> Word:
    if values := _values_of(kind):
        return _choice(values)
    if kind is bool:
        return _truth
    if _base(kind) is dict:
        return _mapping
    return kind if inspect.isclass(kind) and kind is not Any else str


def _first_of(words: list[Word]) -> Word:
    """Read as the first type that takes the word."""
    if len(words) <= 1:
        return words[0] if words else str

    def value(text: str) -> Any:
        for word in words[:-1]:
            try:
                return word(text)
            except (ValueError, TypeError, ArgumentTypeError):
                continue
        return words[-1](text)

    return value


def _choice(values: tuple[Any, ...]) -> Word:
    spellings = {str(value): value for value in values}

    def choice(text: str) -> Any:
        if isinstance(text, Enum):  # argparse also passes defaults through here, where they are strings
            return text
        if text not in spellings:
            known = ", ".join(spellings)
            raise ArgumentTypeError(f"{text!r} is not one of {known}{did_you_mean(text, spellings)}")
        return spellings[text]

    return choice


def _truth(text: str) -> bool:
    value = truth(text)
    if value is None:
        raise ArgumentTypeError(f"{text!r} is neither true nor false: write yes or no, true or false, 1 or 0")
    return value


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = read_json(text)
    except JsonSlipError as error:
        raise ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{text!r} is JSON, but no object: write it in braces")
    return value
