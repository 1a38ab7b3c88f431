"""Files of options: JSON, YAML, and words as on the command line. What cannot be read is an error that names the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mainspring.arguments.jsontext import JsonSlipError, read_json, read_text
from mainspring.errors import MissingPackageError

_OF_YAML = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What PyYAML lets through from the values that it makes: of a date that is none, an empty number, ..."""


def options_of_json(json_file: str | os.PathLike[str]) -> Mapping[str, Any]:
    """What a JSON file says of options, by name.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no JSON object.
    """
    text = _text("json_file", json_file)
    try:
        return _mapping_in("json_file", json_file, read_json(text))
    except JsonSlipError as error:
        raise ValueError(f"json_file={os.fspath(json_file)!r}: not JSON: {error}; correct it there") from error


def options_of_yaml(yaml_file: str | os.PathLike[str]) -> Mapping[str, Any]:
    """What a YAML file says of options, by name.

    Raises:
        MissingPackageError: PyYAML is not installed.
        OSError: It cannot be read.
        ValueError: It holds no YAML mapping.
    """
    try:
        yaml: Any = import_module("yaml")
    except ImportError as error:
        raise MissingPackageError("parse_yaml_file needs PyYAML: pip install pyyaml", name="yaml") from error
    text = _text("yaml_file", yaml_file)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, *_OF_YAML) as error:
        # An error of YAML's own quotes the line, which may hold a token: it is not shown as the cause either.
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        said = f"{getattr(error, 'problem', None) or type(error).__name__}{place}"
        raise ValueError(f"yaml_file={os.fspath(yaml_file)!r}: not YAML: {said}; correct it there") from None
    return _mapping_in("yaml_file", yaml_file, content)


def words_of(file: Path) -> list[str]:
    """The words of a file of options, as on the command line."""
    return _text("args file", file).split()


def _text(option: str, file: str | os.PathLike[str]) -> str:
    try:
        return read_text(file)
    except ValueError as error:
        raise ValueError(
            f"{option}={os.fspath(file)!r}: cannot be read ({error}); give a text file in UTF-8"
        ) from error


def _mapping_in(option: str, file: str | os.PathLike[str], content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{option}={os.fspath(file)!r}: holds a {type(content).__name__}; write options by name")
    return content
