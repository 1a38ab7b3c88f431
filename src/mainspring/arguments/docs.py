"""The page of all options, made from their declarations.

    python -m mainspring.arguments.docs [--check] [PATH]

Without a path the page is printed. `--check` compares it with the file, for a build that must not let it grow stale.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from mainspring.arguments import Seq2SeqTrainingArguments, interactions, not_yet, spellings
from mainspring.arguments.docstring import default_of
from mainspring.arguments.generations import since
from mainspring.arguments.option import groups_of
from mainspring.arguments.sources import newer_name
from mainspring.arguments.translations import TRANSLATED

_INTRODUCTION = """\
# Options

Every option of `TrainingArguments`, and, at the end, those that `Seq2SeqTrainingArguments` adds. In Python they are
keywords, of which only `output_dir` may be positional: `TrainingArguments("out", learning_rate=1e-4)`. On the command
line, `HfArgumentParser(TrainingArguments)` reads them as `--learning_rate 1e-4` or `--learning-rate 1e-4`; options of
type bool may stand alone (`--bf16`).

Values are checked together: one error names every option that cannot be, with its value and a way out. An option that
was given, but can do nothing beside the others (`save_steps` with `save_strategy="epoch"`), is a warning that says why.
This page is made from the declarations in `src/mainspring/arguments`; `make docs` writes it.

*Since* is the generation of the reference that the option came with, 4.37 or before, or 5; it is Mainspring where only
this package has it. Spellings of 4.37 that mean the option, or a value of it, are named after *also*. *With* names the
options that it is looked at together with: [what must hold between them](#what-must-hold-between-options) and
[what has no effect](#what-has-no-effect) are listed below.

¹ not available yet: any value but the default raises an error that names the option.
² some values are not available yet; [they are listed below](#values-that-are-not-available-yet).
"""


def page() -> str:
    """The page, as Markdown."""
    sections = [_INTRODUCTION]
    for title, fields in groups_of(Seq2SeqTrainingArguments).items():
        rows = [_row(field) for field in fields]
        sections.append(f"## {title}\n\n{_table(_HEAD, rows)}")
    return "\n".join([*sections, *_interactions(), *_not_available(), *_older()])


_HEAD = ("option", "type", "default", "meaning", "since", "with")


def _row(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    name = field.name
    partners = _names(interactions.partners().get(name, ()))
    return (f"`{name}`{_mark(name)}", _type(field), _default(field), _meaning(field), _since(name), partners)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _names(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _mark(name: str) -> str:
    return "¹" if name in not_yet.OPTIONS else "²" if name == "report_to" else ""


def _since(name: str) -> str:
    older = sorted(older for older in spellings.OLDER_NAMES if newer_name(older) == name)
    return f"{since(name)}, also {_names(older)}" if older else since(name)


def _type(field: dataclasses.Field[Any]) -> str:
    if field.metadata["choices"] is None:
        name = str(field.type).replace("Any", "object").replace(" | ", " or ")
        return f"{name.replace('[str, object]', '')}{', or the path of a JSON file' if field.metadata['json'] else ''}"
    return _names(_values(field))


def _default(field: dataclasses.Field[Any]) -> str:
    default = field.metadata["shown"] or default_of(field)
    return "" if default is None else str(default) if isinstance(default, str) and default else f"`{default!r}`"


def _meaning(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata["help"])


def _not_available() -> Iterator[str]:
    rows = [("`report_to`", "every service")]
    yield f"## Values that are not available yet\n\n{_table(('option', 'values'), rows)}"


def _interactions() -> Iterator[str]:
    rows = [(_names(entry.beside), entry.what) for entry in interactions.errors()]
    yield (
        "## What must hold between options\n\nWhere it does not, an error names the options, their values and a way "
        f"out.\n\n{_table(('options', 'why'), rows)}"
    )
    idle = [(_names(entry.options), _names(entry.beside), entry.what) for entry in interactions.idle()]
    yield (
        "## What has no effect\n\nOptions that were given are named in a warning when those beside them keep them from "
        f"doing anything.\n\n{_table(('option', 'beside', 'when'), idle)}"
    )
    noticed = [(_names(entry.beside), entry.what) for entry in interactions.notices()]
    yield f"Also worth a warning:\n\n{_table(('options', 'why'), noticed)}"


def _values(field: dataclasses.Field[Any]) -> list[str]:
    return [str(value.value) if isinstance(value, Enum) else str(value) for value in field.metadata["choices"]]


def _older() -> Iterator[str]:
    yield (
        "## Older spellings\n\nNames of version 4.37 are accepted, with a warning that names the new one.\n\n"
        + _table(("older", "now"), [(f"`{old}`", f"`{new}`") for old, new in _sorted(spellings.RENAMED)])
    )
    became = [(f"`{old}`", translation.now) for old, translation in sorted(TRANSLATED.items())]
    yield f"Became part of another option:\n\n{_table(('older', 'now'), became)}"
    without = [(f"`{old}`", why) for old, why in _sorted(spellings.WITHOUT_EFFECT)]
    yield f"Accepted, but without an effect:\n\n{_table(('older', 'why'), without)}"
    refused = [(f"`{old}`", instead) for old, instead in _sorted(spellings.REFUSED)]
    yield f"Refused, unless they have the value that did nothing:\n\n{_table(('older', 'instead'), refused)}"


def _sorted(table: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(table.items())


def main(words: Sequence[str] | None = None) -> int:
    """Write, print or check the page; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mainspring.arguments.docs", description="The page of all options.")
    parser.add_argument("path", nargs="?", type=Path, metavar="PATH", help="file of the page")
    parser.add_argument("--check", action="store_true", help="fail if PATH does not hold the page")
    asked = parser.parse_args(words)
    if asked.check and asked.path is None:
        parser.error("--check needs a PATH")
    if asked.path is None:
        sys.stdout.write(page())
    elif not asked.check:
        asked.path.write_text(page(), encoding="utf-8")
    elif not asked.path.is_file() or asked.path.read_text(encoding="utf-8") != page():
        sys.stderr.write(f"{asked.path} does not match the declared options: run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
