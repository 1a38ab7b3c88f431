"""The values of a DeepSpeed configuration, each with where it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mainspring.arguments.deepspeed.filling import LATER, left_to_run
from mainspring.arguments.deepspeed.reading import AUTO, leaves
from mainspring.arguments.deepspeed.settings import DeepSpeedSettings
from mainspring.arguments.masking import masked


class Shown(NamedTuple):
    """One value.

    Attributes:
        path: Where it stands, dotted.
        value: As it is.
        source: Where it came from.
        note: When it is filled in, where that is later.
    """

    path: str
    value: Any
    source: str
    note: str = ""


def shown(settings: DeepSpeedSettings) -> Iterator[Shown]:
    """Every value, in the order of the configuration, which is filled in as far as is known."""
    settings = settings.with_any_optimizer()
    known = settings.sources
    written = _of_file(known["deepspeed"]) if "deepspeed" in known else "deepspeed"
    for path, found in leaves(settings.config):
        value = _without_tokens(path, found)
        if value == AUTO and path in LATER:
            yield Shown(path, AUTO, LATER[path], left_to_run(path))
        elif path in settings.origins:
            yield Shown(path, value, _with_sources(settings.origins[path], known))
        elif path in settings.said_by:
            yield Shown(path, value, f"environment {settings.said_by[path]}")
        else:
            yield Shown(path, value, written)


def _of_file(source: str) -> str:
    """What the configuration itself says, with the file that it was read from, or else with where the option came from."""
    file = source.rpartition(_READ)[2]
    return f"deepspeed ({file})"


_READ = "read from "
"""What the note of an option begins with that names a file."""


def _without_tokens(path: str, value: Any) -> Any:
    key = path.rpartition(".")[2]
    return masked({key: value})[key]


def _with_sources(options: str, sources: Mapping[str, str]) -> str:
    """The options that a value follows from, with where those that somebody chose came from."""
    found = dict.fromkeys(sources[name] for name in re.findall(r"\w+", options) if name in sources)
    chosen = [source for source in found if source != "default"] or [*found]
    return f"{options} ({', '.join(chosen)})" if chosen else options


def table(settings: DeepSpeedSettings) -> str:
    """The values as text, one a line."""
    rows = [*shown(settings)]
    names = max((len(row.path) for row in rows), default=0)
    values = max((len(repr(row.value)) for row in rows), default=0)
    lines = [f"  {row.path:<{names}}  {row.value!r:<{values}}  {row.source}" for row in rows]
    return "\n".join(["DeepSpeed's configuration", *lines, ""])
