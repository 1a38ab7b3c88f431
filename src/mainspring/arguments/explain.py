"""`args.explain()`: every value with its source, and what was adjusted or does nothing, and why."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mainspring.arguments.deepspeed.settings import settings_of_options
from mainspring.arguments.deepspeed.shown import shown
from mainspring.arguments.environment import decided_by_environment
from mainspring.arguments.idle import idle_options
from mainspring.arguments.option import groups_of
from mainspring.arguments.rules import NOTICES, broken_rules
from mainspring.arguments.sources import A_DEFAULT
from mainspring.arguments.spellings import OLDER_NAMES, WITHOUT_EFFECT
from mainspring.arguments.training_arguments import TrainingArguments
from mainspring.errors import did_you_mean

OLDER = "Older options"
ENVIRONMENT = "From the environment"
DEEPSPEED = "DeepSpeed's configuration"

_WIDEST_VALUE = 60
"""Characters of a value in the table."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One effective value.

    Attributes:
        group: Title of the option's group.
        option: Its name.
        value: As a plain value; a token is masked.
        source: Where it came from: "default", "keyword", "file config.json", "derived from logging_steps", ...
        notes: What happened to it on the way, and why it may do nothing.
        usual: Whether the value is what these arguments have where nobody gives anything.
    """

    group: str
    option: str
    value: Any
    source: str
    notes: tuple[str, ...]
    usual: bool


@dataclasses.dataclass(frozen=True)
class Explanation:
    """All effective values of one arguments object.

    Attributes:
        name: Name of the arguments' class.
        rows: One per option, in the order of the groups, then older options, then what the environment decides.
    """

    name: str
    rows: tuple[Row, ...]

    def text(self, everything: bool = False) -> str:
        """The table.

        Args:
            everything: Also show options that have their default values and nothing to be said of.
        """
        shown = [row for row in self.rows if everything or row.notes or not row.usual]
        return "\n".join([*_table(shown), *self._footer(len(self.rows) - len(shown)), ""])

    def _footer(self, left_out: int) -> list[str]:
        which = "All" if left_out == len(self.rows) else "The other"
        return [f"{which} {left_out} options of {self.name} have their default values."] if left_out else []


def explanation(args: TrainingArguments) -> Explanation:
    """Say of every option what its value is and where that came from. No device, file or service is touched."""
    return Explanation(
        type(args).__name__, (*_options(args), *_older_options(args), *_environment(args), *_deepspeed(args))
    )


def no_options(cls: type[TrainingArguments], names: Iterable[str]) -> Iterator[str]:
    """A line for each name that is no option of an arguments class: the script's own, or a slip."""
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for name in names:
        if name not in known and name not in OLDER_NAMES:
            yield f"not an option of the arguments: {name}{did_you_mean(str(name), known)}"


def _options(args: TrainingArguments) -> Iterator[Row]:
    usual, notes = _usual(_our_class(type(args))), _notes(args)
    values = TrainingArguments.to_dict(args)
    for title, fields in groups_of(type(args)).items():
        for name in (field.name for field in fields):
            origin = args._known_origins.get(name, A_DEFAULT)
            source = origin.source or _declared(type(args), name)
            said = tuple(filter(None, (origin.note, *notes.get(name, ()))))
            is_usual = getattr(args, name) == usual[name] if name in usual else origin is A_DEFAULT
            yield Row(title, name, values[name], source, said, is_usual)


def _older_options(args: TrainingArguments) -> Iterator[Row]:
    """Options that do nothing any more, but that scripts read back."""
    for name, origin in args._known_origins.items():
        if name in WITHOUT_EFFECT and name not in type(args).__dataclass_fields__:
            yield Row(OLDER, name, vars(args).get(name), origin.source, (origin.note,), usual=False)


def _environment(args: TrainingArguments) -> Iterator[Row]:
    for decided in decided_by_environment(args):
        notes = (decided.note,) if decided.note else ()
        source = f"environment {decided.variable}"
        yield Row(ENVIRONMENT, decided.name, decided.value, source, notes, usual=False)


def _deepspeed(args: TrainingArguments) -> Iterator[Row]:
    """What the options make of the configuration; what cannot be is said of the setting, or of the option."""
    settings, problems = settings_of_options(args)
    for one in shown(settings) if settings is not None else ():
        yield Row(DEEPSPEED, one.path, one.value, one.source, (one.note,) if one.note else (), usual=False)
    for problem in problems:
        note = f"cannot be: {problem.why}; {problem.fix}"
        yield Row(DEEPSPEED, problem.option, problem.value, "", (note,), usual=False)


def _usual(cls: Any) -> dict[str, Any]:
    """The options of arguments for which nobody gave anything; they are not made for a run, and launchers not heeded."""
    instance = cls.__new__(cls)
    instance.__init__()
    options: dict[str, Any] = vars(instance)
    return options


def _our_class(cls: type[TrainingArguments]) -> type[TrainingArguments]:
    return next(base for base in cls.__mro__ if base.__module__.startswith("mainspring."))


def _declared(cls: type, name: str) -> str:
    """The source of a value that nobody gave."""
    declaring = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    return "default" if declaring.__module__.startswith("mainspring.") else f"default of {declaring.__name__}"


def _notes(args: TrainingArguments) -> Mapping[str, list[str]]:
    """What is to be said of the values as they are now: setters and assignments do not look at other options."""
    # A JSON option may name a file, which is read at construction only.
    fields = [field for field in dataclasses.fields(_our_class(type(args))) if not field.metadata["json"]]
    _, unread = args._read({field.name: getattr(args, field.name) for field in fields})
    impossible = unread or [*broken_rules(args), *args._unavailable()]
    doubtful = [] if unread else [*(notice(args) for notice in NOTICES), *idle_options(args)]
    notes: dict[str, list[str]] = {}
    for problem in impossible:
        notes.setdefault(problem.option, []).append(f"cannot be: {problem.why}; {problem.fix}")
    for problem in filter(None, doubtful):
        notes.setdefault(problem.option, []).append(f"{problem.why}; {problem.fix}")
    return notes


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows under the titles of their groups, each followed by its notes."""
    name_width = max((len(row.option) for row in rows), default=0)
    value_width = max((len(_cut(row.value)) for row in rows), default=0)
    for title, group in itertools.groupby(rows, key=lambda row: row.group):
        yield title
        for row in group:
            yield f"  {row.option:<{name_width}}  {_cut(row.value):<{value_width}}  {row.source}"
            yield from (f"      {note}" for note in row.notes)
        yield ""


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _WIDEST_VALUE else f"{text[: _WIDEST_VALUE - 1]}…"
