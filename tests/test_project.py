"""The project's own files agree with each other."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_PINNED = {"mainspring"}


def names_of_requirements() -> set[str]:
    """Every package that pyproject.toml names in its dependencies and extras."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tables = project[project.index("dependencies = [") : project.index("[project.scripts]")]
    return {found.lower().replace("_", "-") for found in re.findall(r'"([A-Za-z][\w-]*)[^"]*"', tables)}


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    required = names_of_requirements()
    assert {"torch", "transformers", "pytest"} <= required
    assert required - NOT_PINNED <= pinned


def test_the_gate_is_a_script_that_bash_can_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], capture_output=True, timeout=60).stderr == b""


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/decisions/README.md"])
def test_links_and_make_targets_of_the_pages_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), f"{page} links to {link}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets


def test_the_map_of_the_house_shows_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text[text.index("## The map") : text.index("## Imports")]
    source = ROOT / "src" / "mainspring"
    rooms = {path.name if path.suffix else f"{path.name}/" for path in source.iterdir() if path.name[0] != "_"}
    doors = {path.name for path in source.glob("*.py") if path.read_text(encoding="utf-8").startswith('"""Door:')}
    unseen = {room for room in rooms - doors - {"py.typed", "integrations/"} if not re.search(rf"\s{room}", tree)}
    assert unseen == set()
