from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from mainspring.checkpoint import newest_first, newest_valid, quarantine, sort_checkpoints, verify
from tests.helpers.checkpoints import flip, names_in, write_foreign, write_small


def test_the_newest_is_taken(tmp_path: Path) -> None:
    for step in (9, 10, 8):
        write_small(tmp_path, step)
    found = newest_valid(tmp_path)
    assert found.folder == tmp_path / "checkpoint-10"
    assert list(found.refused) == []


def test_nothing_is_found_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert newest_valid(folder).folder is None


@pytest.mark.parametrize("damage", ["flipped", "cut off", "file missing", "no manifest", "damaged manifest", "empty"])
def test_damaged_ones_are_named_and_the_next_newest_is_taken(tmp_path: Path, damage: str) -> None:
    good, bad, worse = (write_small(tmp_path, step) for step in (10, 20, 30))
    for folder in (bad, worse):
        match damage:
            case "flipped":
                flip(folder / "weights.bin", 7)
            case "cut off":
                os.truncate(folder / "weights.bin", 7)
            case "file missing":
                (folder / "weights.bin").unlink()
            case "no manifest":
                (folder / "progress.json").write_text("{}")
                (folder / "manifest.json").unlink()
            case "damaged manifest":
                flip(folder / "manifest.json", 60)
            case "empty":
                shutil.rmtree(folder)
                folder.mkdir()
    found = newest_valid(tmp_path)
    assert found.folder == good
    assert [folder for folder, _ in found.refused] == [worse, bad]
    assert all(reasons for _, reasons in found.refused)
    assert names_in(tmp_path) == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]


def test_all_may_be_damaged(tmp_path: Path) -> None:
    for step in (10, 20):
        flip(write_small(tmp_path, step) / "weights.bin", 7)
    found = newest_valid(tmp_path)
    assert found.folder is None
    assert len(found.refused) == 2


def test_the_manifest_and_not_the_name_or_a_time_makes_it_the_newest(tmp_path: Path) -> None:
    write_small(tmp_path, step=5, name="checkpoint-1")
    write_small(tmp_path, step=3, name="checkpoint-900")
    os.utime(tmp_path / "checkpoint-1", (1, 1))
    assert newest_valid(tmp_path).folder == tmp_path / "checkpoint-1"


def test_a_copy_under_another_number_comes_after_its_original(tmp_path: Path) -> None:
    shutil.copytree(write_small(tmp_path, 5), tmp_path / "checkpoint-4")
    assert newest_first(tmp_path) == [tmp_path / "checkpoint-5", tmp_path / "checkpoint-4"]


def test_those_of_the_reference_have_their_place_in_the_order(tmp_path: Path) -> None:
    write_small(tmp_path, 10)
    write_foreign(tmp_path, 20).rename(tmp_path / "checkpoint-5")
    assert newest_valid(tmp_path).folder == tmp_path / "checkpoint-5"


@pytest.mark.parametrize("state", ["", "[]", "{}", json.dumps({"global_step": None}), "[" * 100_000])
def test_where_the_step_cannot_be_read_the_name_tells(tmp_path: Path, state: str) -> None:
    write_small(tmp_path, 10)
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-5").mkdir()
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-20", "checkpoint-10", "checkpoint-5"]


def test_no_more_are_read_than_it_takes(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_small(tmp_path, step)
    flip(tmp_path / "checkpoint-30" / "weights.bin", 0)
    read = []

    def recorded(folder: str | os.PathLike[str]) -> list[str]:
        read.append(Path(folder).name)
        return verify(folder)

    assert newest_valid(tmp_path, recorded).folder == tmp_path / "checkpoint-20"
    assert read == ["checkpoint-30", "checkpoint-20"]


def test_what_is_moved_aside_keeps_its_content_and_is_no_checkpoint_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_small(tmp_path)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    aside = quarantine(folder, ["weights.bin is missing", "config.json is missing"])
    assert aside == tmp_path / "checkpoint-20.damaged"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == content
    assert sort_checkpoints(tmp_path) == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"{folder} is not a valid checkpoint: weights.bin is missing; config.json is missing. "
        "Moved aside to checkpoint-20.damaged"
    )


def test_nothing_is_overwritten_by_moving_aside(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-20.damaged").mkdir()  # empty: a bare rename would replace it
    (tmp_path / "checkpoint-20.damaged.2").write_text("a file")
    (tmp_path / "checkpoint-20.damaged.3").symlink_to("nowhere")
    aside = [quarantine(write_small(tmp_path), ["why"]) for _ in range(2)]
    assert aside == [tmp_path / "checkpoint-20.damaged.4", tmp_path / "checkpoint-20.damaged.5"]
    assert names_in(tmp_path / "checkpoint-20.damaged") == []


@pytest.mark.parametrize("number", [errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR])
def test_a_name_that_is_taken_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = write_small(tmp_path)
    rename = Path.rename

    def beaten(self: Path, to: Path) -> Path:
        if to.name == "checkpoint-20.damaged":
            raise OSError(number, os.strerror(number))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", beaten)
    assert quarantine(folder, ["why"]) == tmp_path / "checkpoint-20.damaged.2"


def test_a_read_only_folder_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_small(tmp_path)

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refused)
    assert quarantine(folder, ["weights.bin is missing"]) is None
    assert folder.is_dir()
    assert "weights.bin is missing. It could not be moved aside: [Errno 30] Read-only file system" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_write_permission_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_small(tmp_path)
    tmp_path.chmod(0o500)
    try:
        assert quarantine(folder, ["why"]) is None
    finally:
        tmp_path.chmod(0o700)
    assert verify(folder) == []
    assert "Permission denied" in caplog.text
