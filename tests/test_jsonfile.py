"""Writing JSON files."""

from __future__ import annotations

import json
from pathlib import Path

from mainspring.jsonfile import write_json


def test_keys_are_sorted_and_numbers_keep_their_bits(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    values = {"b": 0.1 + 0.2, "a": {"d": float("inf"), "c": "é"}}
    write_json(values, path)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == values
    assert list(json.loads(text)) == ["a", "b"]
    assert text.startswith('{\n  "a"')
    assert text.endswith("}\n")


def test_another_layout_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json({"a": "long before"}, path)
    write_json({"a": 1}, path, indent=4, end="")
    assert path.read_text(encoding="utf-8") == '{\n    "a": 1\n}'
