"""The guides are true: their code runs, and prints what they say.

Blocks of a page are taken in order, in one folder and one Python namespace. ```python is run, and a ```text after it is
its output. ```console is run line by line, each `$ command` followed by its output. A block with a second word after
the language, as in ```yaml config.yaml, is the file of that name. In outputs, `...` stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

GUIDES = sorted((Path(__file__).resolve().parent.parent / "docs" / "guides").glob("*.md"))

BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", flags=re.MULTILINE)


def check(wanted: str, printed: str, code: str) -> None:
    """Compare an output with the page's."""
    assert doctest.OutputChecker().check_output(wanted, printed, doctest.ELLIPSIS), f"{code}\nprints\n{printed}"


def run_python(code: str, namespace: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "guide", "exec", dont_inherit=True), namespace)
    return out.getvalue()


def run_command(command: str, folder: Path) -> str:
    """Run a command with this environment's `python` and `mainspring`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        command, shell=True, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_is_true(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("guide")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "guide", module)
    code = printed = ""
    for language, file, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if file:
            Path(file).write_text(text, encoding="utf-8")
        elif language == "python":
            code, printed = text, run_python(text, vars(module))
        elif language == "console":
            for command, wanted in COMMAND.findall(text):
                check(wanted, run_command(command, tmp_path), command)
        else:
            assert language == "text", f"{page.name}: a {language} block is neither run nor a file"
            check(text, printed, code)


def test_links_of_the_guides_exist() -> None:
    for page in GUIDES:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_tests_that_the_guides_name_exist() -> None:
    for page in GUIDES:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8"))
        assert named or page.stem != "checkpoints"
        for file, name in named:
            content = (page.parents[2] / file).read_text(encoding="utf-8")
            assert f"def {name}(" in content if name else content, f"{page.name} names {file}::{name}"
