"""Write `golden.json`: the arguments that version 4.37.2 of the reference makes of each case.

`tests/compat437/make_golden.py` says how to make the environment that it needs. Run it from the root of the repository:

    v437/bin/python -m tests.arguments.older.make_golden
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import transformers

from tests.arguments.older.cases import BASE, CASES, recorded

FIELDS = [field.name for field in dataclasses.fields(transformers.TrainingArguments)]


def made_of(options: dict[str, Any]) -> dict[str, Any] | None:
    """What they become; None where they are refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return recorded(transformers.TrainingArguments(**{**BASE, **options}), FIELDS)
        except (TypeError, ValueError):
            return None


def main() -> None:
    made = {name: made_of(options) for name, options in CASES.items()}
    usual = made["{}"]
    assert usual is not None
    changed = {
        name: values and {key: value for key, value in values.items() if value != usual[key] or name == "{}"}
        for name, values in made.items()
    }
    text = json.dumps({"version": transformers.__version__, "cases": changed}, indent=1)
    (Path(__file__).parent / "golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
