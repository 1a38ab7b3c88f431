"""JSON as people write it: read, or refused with the place where it breaks and what is wrong there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_NOT_JSON = {
    "'": "a single quote, where JSON has double ones",
    "//": "a comment, which JSON has not",
    "/*": "a comment, which JSON has not",
    "#": "a comment, which JSON has not",
    "True": "True, which JSON writes true",
    "False": "False, which JSON writes false",
    "None": "None, which JSON writes null",
}
"""What other languages write, by how it begins."""


class JsonSlipError(ValueError):
    """Text that is not JSON. The message says what is wrong, and where."""


def read_json(text: str) -> Any:
    """The value that JSON text stands for.

    Raises:
        JsonSlipError: It is not JSON, says something twice, or is more than can be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except JsonSlipError:
        raise
    except json.JSONDecodeError as error:
        position, what = _slip(text, error)
        line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
        raise JsonSlipError(f"{what} at line {line}, column {column}") from error
    except RecursionError as error:
        raise JsonSlipError("too many brackets inside one another") from error
    except ValueError as error:  # Python reads no number of thousands of digits
        raise JsonSlipError(f"a number that cannot be read ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, which says everything once."""
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonSlipError(f"{twice!r} is there twice")
    return read


def read_text(path: str | os.PathLike[str]) -> str:
    """What a file in UTF-8 holds; without the mark that some editors put first.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8, or there can be no file of this name.
    """
    return Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")


def _slip(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """Where the text breaks and why, in words; Python's own where there are none for it."""
    before, rest = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    # Versions of Python point to the comma, or past it.
    if rest[:1] in ("}", "]") and before.endswith(","):
        return len(before) - 1, "a comma after the last item"
    if rest[:1] == "," and rest[1:].lstrip()[:1] in ("}", "]"):
        return error.pos, "a comma after the last item"
    if not rest:
        return len(before), "the end of the text, where a closing bracket is missing"
    known = next((said for start, said in _NOT_JSON.items() if rest.startswith(start)), None)
    return error.pos, known or error.msg
