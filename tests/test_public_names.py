"""The top level: what it exports, from where, and what importing it costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mainspring

TREE = ast.parse(Path(mainspring.__file__).read_text(encoding="utf-8"))
HEAVY = ("torch", "numpy", "accelerate", "transformers", "datasets", "peft", "pandas", "pyarrow")


def imported_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has imported after running `code`."""
    report = f"import json, sys; {code}; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_every_public_name_is_listed() -> None:
    assert set(mainspring.__all__) <= set(dir(mainspring))


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    (block,) = [node for node in TREE.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"mainspring.{room}" for name, room in mainspring._HOME.items()}
    assert set(seen) == set(mainspring.__all__)


def test_the_table_names_the_rooms_in_which_things_are_defined() -> None:
    for name, room in mainspring._HOME.items():
        assert getattr(mainspring, name) is getattr(import_module(f"mainspring.{room}"), name)


def test_modules_are_reached_as_attributes() -> None:
    code = "import mainspring; assert mainspring.utils.logging.get_verbosity(); assert mainspring.trainer_callback.TrainerState"
    assert imported_by(code) <= {"torch", "numpy", "accelerate"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'mainspring' has no attribute 'Trianer'"):
        mainspring.Trianer  # noqa: B018 - the look-up is what is tested


@pytest.mark.parametrize(
    "code",
    [
        "import mainspring.seams, mainspring.utils.logging, mainspring.cli",
        "from mainspring import HfArgumentParser",
        "import mainspring.training_args, mainspring.training_args_seq2seq, mainspring.hf_argparser",
    ],
)
def test_the_lower_layers_import_nothing_heavy(code: str) -> None:
    assert imported_by(code) == set()


FAMILIES = ("bnb", "grok", "lomo", "low_bit", "schedule_free", "stable")
"""Optimizers of packages, each imported when one of its names is asked for."""


def test_no_other_module_imports_an_optional_package_when_it_is_imported() -> None:
    kept_out = tuple(f"mainspring.optimizers.{name}" for name in FAMILIES)
    code = (
        "import pkgutil, mainspring; from importlib import import_module; "
        "[import_module(m.name) for m in pkgutil.walk_packages(mainspring.__path__, 'mainspring.') if m.name[-8:] != '__main__' "
        f"and m.name not in {kept_out}]"
    )
    assert imported_by(code) <= {"torch", "numpy", "accelerate"}
