"""Reading a DeepSpeed configuration: a mapping, or the path of a JSON file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mainspring.errors import Problem

AUTO = "auto"
"""The value that leaves a setting to the options."""


def read_config(option: str, value: Any) -> tuple[dict[str, Any], Problem | None]:
    """The configuration, which the caller may change; or what is wrong with it.

    Args:
        option: The option that holds it, for the message.
        value: A mapping, or the path of a JSON file.
    """
    if isinstance(value, Mapping):
        return copy.deepcopy(dict(value)), None
    if hasattr(value, "config") and isinstance(value.config, Mapping):  # an HfDeepSpeedConfig
        return copy.deepcopy(dict(value.config)), None
    if not isinstance(value, (str, os.PathLike)):
        return {}, Problem(option, value, f"is a {type(value).__name__}", "pass a mapping or the path of a JSON file")
    return _read_file(option, Path(value).expanduser())


def _read_file(option: str, path: Path) -> tuple[dict[str, Any], Problem | None]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except OSError as error:
        why = f"the file cannot be read ({error.strerror or error})"
        return {}, Problem(option, str(path), why, "give the path of a JSON file, or a mapping")
    except ValueError as error:
        return {}, Problem(option, str(path), f"is no JSON ({error})", "correct the file")
    if not isinstance(content, dict):
        return {}, Problem(
            option, str(path), f"holds a {type(content).__name__}", "write one JSON object into the file"
        )
    return content, None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different: of two values one would be lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found


def setting(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    here: Any = config
    for key in path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return None
        here = here[key]
    return here


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path, and make the sections that lead there."""
    *sections, key = path.split(".")
    here = config
    for section in sections:
        here = here.setdefault(section, {})
    here[key] = value
