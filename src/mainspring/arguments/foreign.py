"""Arguments of the reference's classes: they were never validated here, so what is not available is looked for again."""

from __future__ import annotations

import dataclasses
import warnings
from enum import Enum
from typing import Any

from mainspring.arguments import not_yet
from mainspring.arguments.accelerator_config import accumulated, problems_of, settings_of
from mainspring.arguments.docstring import default_of
from mainspring.arguments.own import OwnArguments
from mainspring.arguments.seq2seq_arguments import Seq2SeqTrainingArguments
from mainspring.arguments.spellings import OLDER_NAMES, translate
from mainspring.arguments.training_arguments import TrainingArguments
from mainspring.errors import NotAvailableError, Problem

_OURS = {field.name: default_of(field) for field in dataclasses.fields(Seq2SeqTrainingArguments)}
_ONLY_OURS = frozenset(field.name for field in dataclasses.fields(OwnArguments))


def check_foreign(args: Any) -> None:
    """Refuse arguments that ask for what is not available yet. Ours were, by their constructor; they may have changed.

    Args:
        args: Arguments of any class: ours, the reference's, or derived from either.

    Raises:
        NotAvailableError: Naming every such option, its value, and the way out.
        OptionError: An option of ours was set to what it cannot be.
    """
    if isinstance(args, TrainingArguments):
        args._recheck()
    elif problems := unavailable(args):
        raise NotAvailableError(problems)


def unavailable(args: Any) -> list[Problem]:
    """What these arguments ask for that is not available yet.

    Only what the reference declares is read off its subclasses: a field that one of them adds may have the name of an
    option of ours, or of an older one, and mean something else.
    """
    declared = _declared(type(args))
    problems: list[Problem] = []
    if declared is None:
        names = _OURS if isinstance(args, OwnArguments) else _OURS.keys() - _ONLY_OURS
        asked = {name: getattr(args, name) for name in names if hasattr(args, name)}
    else:
        changed = {n: v for n in declared if hasattr(args, n) and (v := getattr(args, n)) != declared[n]}
        asked, problems = _in_newer_spellings(changed)
    found = [not_yet.problem(name, _as_given(name, asked[name]), _OURS[name]) for name in _OURS if name in asked]
    return [*problems, *(problem for problem in found if problem is not None), *_problems_of_accumulation(args)]


def _problems_of_accumulation(args: Any) -> list[Problem]:
    settings = settings_of(getattr(args, "accelerator_config", None))
    steps = getattr(args, "gradient_accumulation_steps", 1)
    problems, asked = problems_of(settings, steps), accumulated(settings)
    if problems or asked in (None, steps):
        return problems
    given = {"gradient_accumulation_kwargs": {"num_steps": asked}}
    why = f"gradient_accumulation_steps is {steps}, and arguments of the reference's class are left as they are"
    return [Problem("accelerator_config", given, why, "use gradient_accumulation_steps instead")]


def _declared(cls: type) -> dict[str, Any] | None:
    """The options of the reference's class that `cls` is or derives from, with their defaults; None for others."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "transformers" and dataclasses.is_dataclass(base):
            return {field.name: default_of(field) for field in dataclasses.fields(base)}
    return None


def _in_newer_spellings(changed: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Older versions of the reference hold options that have become part of others."""
    older = {name: changed.pop(name) for name in OLDER_NAMES & changed.keys()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # whoever wrote for that version wrote it right
        newer, problems = translate(older)
    return {**newer, **changed}, problems


def _as_given(name: str, value: Any) -> Any:
    """A resolved value as a user would have written it; what only spells out defaults, as None."""
    if name == "report_to":
        return None if value in ("none", ["none"]) else value
    if isinstance(value, (list, tuple)):
        return [_as_given("", item) for item in value]
    return value.value if isinstance(value, Enum) else value
