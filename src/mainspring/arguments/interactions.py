"""How options bear on each other, read off the code of the rules: for the page of all options."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mainspring.arguments.idle import IDLE
from mainspring.arguments.machine import BETWEEN_PROCESSES
from mainspring.arguments.rules import NOTICES, RULES
from mainspring.arguments.seq2seq_arguments import Seq2SeqTrainingArguments

_NAMES = tuple(field.name for field in dataclasses.fields(Seq2SeqTrainingArguments))


@dataclass(frozen=True)
class Interaction:
    """Options that are looked at together.

    Attributes:
        options: What the error or the warning is about.
        beside: The others that it depends on.
        what: When it comes, in a sentence.
    """

    options: tuple[str, ...]
    beside: tuple[str, ...]
    what: str


def options_read(function: Callable[..., Any]) -> frozenset[str]:
    """The options that a function reads off its argument.

    That is by `a.name`, by `getattr(a, "name", ...)` or `a._was_given("name")`, or in `another_function(a)`.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    argument = next(iter(inspect.signature(function).parameters))
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == argument
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "_was_given":
            found.add(ast.literal_eval(call.args[0]))
        elif isinstance(call.func, ast.Name) and call.func.id == "getattr" and isinstance(call.args[1], ast.Constant):
            found.add(str(call.args[1].value))
        elif isinstance(call.func, ast.Name) and isinstance(call.args[0], ast.Name):
            called = function.__globals__.get(call.func.id)
            found |= options_read(called) if inspect.isfunction(called) else set()
    return frozenset(found.intersection(_NAMES))


def errors() -> list[Interaction]:
    """What must hold between options. What is about one option alone is no interaction."""
    found = [_of_function(rule, ()) for rule in RULES]
    return [interaction for interaction in found if len(interaction.beside) > 1]


def idle() -> list[Interaction]:
    """Options that can do nothing beside others."""
    found = [_of_function(entry.why, entry.options) for entry in IDLE]
    return [*found, Interaction(BETWEEN_PROCESSES, (), "The run is one process.")]


def notices() -> list[Interaction]:
    """What else is worth a warning."""
    return [_of_function(notice, ()) for notice in NOTICES]


def _of_function(function: Callable[..., Any], options: tuple[str, ...]) -> Interaction:
    beside = options_read(function)
    what = (inspect.getdoc(function) or "").splitlines()[0]
    return Interaction(options, _in_order(beside.difference(options)), what)


@functools.cache
def partners() -> dict[str, tuple[str, ...]]:
    """For each option that interacts with others, these, in the order of their declaration."""
    found: dict[str, set[str]] = {}
    for interaction in [*errors(), *idle(), *notices()]:
        involved = {*interaction.options, *interaction.beside}
        for option in involved:
            # Options that idle together are not what makes each other idle.
            others = interaction.beside if option in interaction.options else involved
            found.setdefault(option, set()).update(set(others) - {option})
    return {option: _in_order(others) for option, others in found.items() if others}


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    wanted = set(names)
    return tuple(name for name in _NAMES if name in wanted)
