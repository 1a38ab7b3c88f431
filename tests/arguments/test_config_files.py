"""Files of options that cannot be read: each error is a ValueError that names the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mainspring import HfArgumentParser, TrainingArguments

PARSER = HfArgumentParser(TrainingArguments)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"seed": 1,}', "not JSON: a comma after the last item at line 1, column 11"),
        (b'{\n  "seed": 1\n  "bf16": true\n}', "not JSON: Expecting ',' delimiter at line 3, column 3"),
        (b'{"seed": "\xff"}', "cannot be read"),
        (b"[" * 100_000, "not JSON: too many brackets inside one another"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "not JSON: a number that cannot be read"),
        (b"", "not JSON: the end of the text"),
        (b"5", "holds a int"),
    ],
)
def test_json_that_cannot_be_read(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        PARSER.parse_json_file(file)
    assert str(error.value).startswith(f"json_file={str(file)!r}: {said}")


@pytest.mark.parametrize(
    "content",
    [
        b"seed: [1",
        b"seed: \xff",
        b"seed: \x00",
        b"seed: 2020-13-45",
        b"seed: !!int ''",
        b"seed: !!float ''",
        b"seed: !!bool maybe",
        b"seed: !!timestamp soon",
        b"seed: !!python/object:os.system x",
        b"seed: " + b"1" * 5000,
        b"seed: " + b"[" * 3000,
        b"? [a]\n: 1",
        b"- a",
        b"",
    ],
    ids=lambda content: content[:40].decode("latin-1"),
)
def test_yaml_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        PARSER.parse_yaml_file(file)
    assert str(error.value).startswith(f"yaml_file={str(file)!r}: ")


def test_files_may_begin_with_a_mark(tmp_path: Path) -> None:
    for name, text in (("json", '{"seed": 7}'), ("yaml", "seed: 7")):
        file = tmp_path / f"options.{name}"
        file.write_text(text, encoding="utf-8-sig")
        (args,) = getattr(PARSER, f"parse_{name}_file")(file)
        assert args.seed == 7


def test_a_file_of_words_must_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.args").write_bytes(b"--run_name \xff")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    with pytest.raises(ValueError, match=r"script.args': cannot be read"):
        PARSER.parse_args_into_dataclasses()
