"""Reading a DeepSpeed configuration: a mapping, JSON text, the path of a JSON file, or an object that holds one."""

from __future__ import annotations

import base64
import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mainspring.arguments.normalise import read
from mainspring.errors import Problem

AUTO = "auto"
"""The value that leaves a setting to the options."""


def read_option(option: str, value: Any) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return `(the configuration, [])`, or `(None, what is wrong with it)`; without a value, `(None, [])`.

    Args:
        option: The option that holds it.
        value: What it was set to.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, []
    config, problem = read_config(option, value)
    return (config, []) if problem is None else (value, [problem])


def read_config(option: str, value: Any) -> tuple[dict[str, Any], Problem | None]:
    """The configuration, which the caller may change; or what is wrong with it.

    Args:
        option: The option that holds it, for the message.
        value: A mapping, JSON text, the path of a JSON file, such text in base64, or an `HfDeepSpeedConfig`.
    """
    held = getattr(value, "config", value)
    given: Any = dict(held) if isinstance(held, Mapping) else value
    if not isinstance(given, (dict, str, os.PathLike)):
        return {}, Problem(option, value, f"is a {type(value).__name__}", "pass a mapping or the path of a JSON file")
    text = given if isinstance(given, dict) else _plain_text(os.fsdecode(given))
    content, problem = read(option, text, frozenset({dict}), None, True)
    return ({}, problem) if problem is not None else (copy.deepcopy(content), None)


def _plain_text(text: str) -> str:
    """The same, without the base64 in which launchers hand on JSON: that of a brace begins with these letters."""
    if not text.startswith(("ey", "ew")) or os.path.exists(text):
        return text
    try:
        return base64.urlsafe_b64decode(text).decode("utf-8")
    except ValueError:
        return text


def setting(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    here: Any = config
    for key in path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return None
        here = here[key]
    return here


def section(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The settings below a dotted path; none where it is absent or holds something else."""
    found = setting(config, path)
    return found if isinstance(found, Mapping) else {}


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path, and make the sections that lead there. What holds no settings is left alone."""
    *sections, key = path.split(".")
    here: Any = config
    for name in sections:
        if here.get(name) is None:
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            return
    here[key] = value


def leaves(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its dotted path; an empty section counts as a setting."""
    for key, value in config.items():
        path = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from leaves(value, path)
        else:
            yield path, value
