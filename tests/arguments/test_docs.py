"""The generated page: every option is on it, and a stale one is noticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mainspring import Seq2SeqTrainingArguments
from mainspring.arguments import docs, not_yet, spellings

PAGE = docs.page()
ROOT = Path(__file__).parents[2]


def rows() -> dict[str, list[str]]:
    """The cells of each option's row."""
    lines = [line.replace("\\|", "¦") for line in PAGE.split("## Values")[0].splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: [cell.strip() for cell in line.split("|")[1:-1]] for line in lines}


def test_every_option_has_its_row() -> None:
    table = rows()
    assert set(table) == {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert table["learning_rate"] == ["`learning_rate`", "float", "`5e-05`", "Peak learning rate of the schedule."]
    assert table["eval_strategy"][1:3] == ["`no` `steps` `epoch`", "no"]
    assert all(len(cells) == 4 and cells[1] and cells[3] for cells in table.values())


def test_what_is_not_available_is_marked() -> None:
    for name, cells in rows().items():
        assert ("¹" in cells[0]) == (name in not_yet.OPTIONS)
        assert ("²" in cells[0]) == (name in not_yet.AVAILABLE)
    listed = PAGE.split("## Values that are not available yet")[1].split("## Older")[0]
    assert "`lomo`" in listed
    assert "`adafactor`" not in listed


@pytest.mark.parametrize("name", sorted(spellings.OLDER_NAMES))
def test_older_spellings_are_listed(name: str) -> None:
    assert f"| `{name}` |" in PAGE.split("## Older spellings")[1]


def test_the_page_in_the_repository_is_current() -> None:
    assert docs.main(["--check", str(ROOT / "docs" / "options.md")]) == 0


def test_writing_and_checking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.md"
    assert docs.main(["--check", str(file)]) == 1
    assert docs.main([str(file)]) == 0
    assert file.read_text(encoding="utf-8") == PAGE
    assert docs.main(["--check", str(file)]) == 0
    file.write_text(PAGE + "more", encoding="utf-8")
    assert docs.main(["--check", str(file)]) == 1
    assert "make docs" in capsys.readouterr().err
    assert docs.main([]) == 0
    assert capsys.readouterr().out == PAGE
    with pytest.raises(SystemExit):
        docs.main(["--check"])
