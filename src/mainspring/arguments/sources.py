"""Where the value of each option came from, kept beside the options: not a field, so in no saved or printed form."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from mainspring.arguments.accelerator_config import AcceleratorConfig
from mainspring.arguments.masking import mask_of, shown
from mainspring.arguments.spellings import OLDER_NAMES, RENAMED, WITHOUT_EFFECT
from mainspring.arguments.translations import TRANSLATED
from mainspring.errors import Problem, printed

KEYWORD = "keyword"
SET_AFTER = "set after construction"
_OLDER = "from the older spelling"


class Origin(NamedTuple):
    """Where one value came from.

    Attributes:
        source: Such as "keyword", "command line", "derived from eval_strategy"; "" for a default.
        note: What happened to it on the way; "" for nothing.
        given: Whether the user gave the option; where its value was derived, it may have been given all the same.
    """

    source: str
    note: str = ""
    given: bool = True


_BY_KEYWORD = Origin(KEYWORD)
A_DEFAULT = Origin("", given=False)
_NONE: Mapping[str, Origin] = {}
_elsewhere: ContextVar[tuple[type, Mapping[str, Origin]] | None] = ContextVar("elsewhere", default=None)


@contextlib.contextmanager
def read_elsewhere(cls: type, origins: Mapping[str, Origin]) -> Iterator[None]:
    """The next construction of `cls` in this context gets keywords that come from a command line or a file.

    Args:
        cls: The class that is about to be called.
        origins: Where the value of each keyword, in the spelling that it is passed in, was read.
    """
    token = _elsewhere.set((cls, origins))
    try:
        yield
    finally:
        _elsewhere.reset(token)


def record(args: Any, written: Mapping[str, Any], options: Mapping[str, Any], names: Collection[str]) -> None:
    """Note what a constructor was given.

    Args:
        args: The instance, before any of its options is set.
        written: The keywords as the user wrote them.
        options: The same in their newer spellings, and with what was positional.
        names: What the constructor takes. An older name that is among them is an option of a subclass.
    """
    reading = _elsewhere.get()
    elsewhere = reading[1] if reading is not None and reading[0] is type(args) else _NONE
    origins = {name: elsewhere.get(name, _BY_KEYWORD) for name in options}
    for older in _older_among(written, names):
        _record_older(older, elsewhere.get(older, _BY_KEYWORD), written, options, origins)
    vars(args).update(_origins=origins, _passed=options)


def _record_older(
    older: str, origin: Origin, written: Mapping[str, Any], options: Mapping[str, Any], origins: dict[str, Origin]
) -> None:
    """What an older spelling did: it set an option, joined or lost to one that was given too, or has no effect."""
    if older in WITHOUT_EFFECT:
        origins[older] = origin._replace(note=f"no effect any more: {WITHOUT_EFFECT[older]}")
        return
    option = newer_name(older)
    if option is None or option not in options:
        return
    value = f"{older}={printed(shown(older, written[older]))}"
    if option not in written:
        notes = (origins[option].note, origin.note, f"{_OLDER} {value}")
        origins[option] = origin._replace(note=_joined(*notes))
    elif older in TRANSLATED:
        fate = "is joined to it" if options[option] is not written[option] else "was given too, and does not count"
        origins[option] = origins[option]._replace(note=_joined(origins[option].note, f"{value} {fate}"))


def _older_among(written: Mapping[str, Any], own: Collection[str] = ()) -> list[str]:
    return [name for name in written if name in OLDER_NAMES and name not in own]


def newer_name(older: str) -> str | None:
    """The option that an older spelling sets; None where there is none."""
    if older in RENAMED:
        return RENAMED[older]
    return TRANSLATED[older].option if older in TRANSLATED else None


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


class Sourced:
    """An object that knows where the values of its options came from.

    The record is replaced, never changed: copies of the object share it.
    """

    @property
    def _known_origins(self) -> Mapping[str, Origin]:
        known: Mapping[str, Origin] = vars(self).get("_origins", _NONE)
        return known

    def _was_given(self, name: str) -> bool:
        """Whether the user gave this option, by whatever way and spelling, even if with the value of the default."""
        origin = self._known_origins.get(name)
        return origin is not None and origin.given

    def _put_origins(self, origins: Mapping[str, Origin]) -> None:
        if origins:
            vars(self)["_origins"] = {**self._known_origins, **origins}

    def _note_set_by_class(self, changed: Mapping[str, Any]) -> None:
        """What the class's own code changed before the options are read.

        Args:
            changed: The options whose values are not our defaults.
        """
        passed = vars(self).pop("_passed", _NONE)
        fields = type(self).__dataclass_fields__  # type: ignore[attr-defined]
        known = self._known_origins
        rewritten = [name for name, value in changed.items() if name in passed and value is not passed[name]]
        added = [name for name, value in changed.items() if name not in known and not _is_default(value, fields[name])]
        self._put_origins(dict.fromkeys([*rewritten, *added], Origin(f"set by {type(self).__name__}")))

    def _note_readings(self, written: Mapping[str, Any], read: Mapping[str, Any]) -> None:
        """Values that mean something else than they look like."""
        for name, value in written.items():
            if value is None and read[name] is not None:
                self._add_note(name, f"None stands for {read[name]!r}")
            elif value is not None and read[name] is None and value == mask_of(name):
                self._add_note(name, "the mask of a token, not a token")
            elif isinstance(read[name], (dict, AcceleratorConfig)) and isinstance(value, (str, os.PathLike)):
                path = os.fspath(value)
                if not path.lstrip().startswith("{"):
                    self._add_note(name, f"read from {path}")

    def _as_written(self, problems: list[Problem]) -> list[Problem]:
        """The same, each with the older spelling that its option was written in, if it was."""

        def told(problem: Problem) -> Problem:
            note = self._known_origins.get(problem.option, _BY_KEYWORD).note
            return dataclasses.replace(problem, why=f"{problem.why} ({note})") if _OLDER in note else problem

        return [told(problem) for problem in problems]

    def _add_note(self, name: str, note: str) -> None:
        origin = self._known_origins.get(name, A_DEFAULT)
        self._put_origins({name: origin._replace(note=_joined(origin.note, note))})

    def _derive(self, name: str, value: Any, *options: str) -> None:
        """Set an option to what follows from `options`; where that is its value already, it stays the user's."""
        before = getattr(self, name)
        if type(before) is type(value) and before == value:
            return
        given = self._was_given(name)
        note = f"given as {shown(name, before)!r}" if given else ""
        vars(self)[name] = value
        self._put_origins({name: Origin(f"derived from {' and '.join(options)}", note, given)})

    def _adjust(self, name: str, value: Any, why: str) -> None:
        """Set an option to what its value means."""
        self._add_note(name, f"given as {shown(name, getattr(self, name))!r}: {why}")
        vars(self)[name] = value

    def _note_assignment(self, written: Mapping[str, Any], options: Mapping[str, Any], by: str = "") -> None:
        """What was set on the finished object.

        Args:
            written: The options as the user wrote them.
            options: The same in their newer spellings.
            by: The method that set them, if one did.
        """
        origin = Origin(f"{SET_AFTER} by {by}()" if by else SET_AFTER)
        origins = dict.fromkeys(options, origin)
        for older in _older_among(written):
            _record_older(older, origin, written, options, origins)
        self._put_origins(origins)

    def _note_end_of_construction(self) -> None:
        """What was set since the options were complete was set by code of a subclass."""
        code = Origin(f"set by {type(self).__name__}")
        late = [name for name, origin in self._known_origins.items() if origin.source.startswith(SET_AFTER)]
        self._put_origins(dict.fromkeys(late, code))


def _is_default(value: Any, field: dataclasses.Field[Any]) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
        return type(value) is type(default) and bool(value == default)
    return value is field.default
