from __future__ import annotations

import os
from pathlib import Path

import pytest

from mainspring.checkpoint import (
    checkpoint_name,
    checkpoint_step,
    get_last_checkpoint,
    remove_checkpoint,
    rotate_checkpoints,
    sort_checkpoints,
)


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir()
        (root / name / "trainer_state.json").write_text("{}")


def left(root: Path) -> list[int]:
    return sorted(step for path in root.iterdir() if (step := checkpoint_step(path)) is not None)


def test_names_and_steps_are_inverse() -> None:
    assert checkpoint_name(20) == "checkpoint-20"
    assert checkpoint_step("out/checkpoint-20") == 20
    assert checkpoint_step("checkpoint-20.partial") is None


@pytest.mark.parametrize(
    "name", ["checkpoint-20-backup", "my-checkpoint-20", "checkpoint-", ".checkpoint-30.7.partial"]
)
def test_other_folders_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    make(tmp_path, "checkpoint-3", name)
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    rotate_checkpoints(tmp_path, 1)
    assert (tmp_path / name).is_dir()


def test_last_is_the_largest_number_and_a_directory(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-9", "checkpoint-10")
    (tmp_path / "checkpoint-11").write_text("a file")
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_no_last_checkpoint_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert get_last_checkpoint(tmp_path) is None
    assert get_last_checkpoint(tmp_path / "nowhere") is None


def test_best_is_sorted_before_the_newest(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-1", "checkpoint-2", "checkpoint-3")
    order = sort_checkpoints(tmp_path, best_model_checkpoint=tmp_path / "checkpoint-1")
    assert [checkpoint_step(path) for path in order] == [2, 1, 3]
    newest = sort_checkpoints(tmp_path, best_model_checkpoint=tmp_path / "checkpoint-3")
    assert [checkpoint_step(path) for path in newest] == [1, 2, 3]


def test_times_order_only_when_asked_and_only_when_they_differ(tmp_path: Path) -> None:
    make(tmp_path, "checkpoint-1", "checkpoint-2")
    os.utime(tmp_path / "checkpoint-1", (1_000_000, 1_000_010))
    os.utime(tmp_path / "checkpoint-2", (1_000_000, 1_000_000))
    assert [checkpoint_step(path) for path in sort_checkpoints(tmp_path)] == [1, 2]
    assert [checkpoint_step(path) for path in sort_checkpoints(tmp_path, use_mtime=True)] == [2, 1]
    os.utime(tmp_path / "checkpoint-1", (1_000_000, 1_000_000.5))
    assert [checkpoint_step(path) for path in sort_checkpoints(tmp_path, use_mtime=True)] == [1, 2]


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 10]),
        (0, None, [1, 2, 3, 10]),
        (-1, None, [1, 2, 3, 10]),
        (4, None, [1, 2, 3, 10]),
        (9, 1, [1, 2, 3, 10]),
        (3, None, [2, 3, 10]),
        (2, None, [3, 10]),
        (1, None, [10]),
        (1, 10, [10]),
        (1, 2, [2, 10]),
        (2, 1, [1, 10]),
        (3, 1, [1, 3, 10]),
    ],
)
def test_rotation_keeps_what_the_reference_keeps(
    tmp_path: Path, limit: int | None, best: int | None, kept: list[int]
) -> None:
    from transformers.trainer_utils import rotate_checkpoints as reference

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for root in (ours, theirs):
        root.mkdir()
        make(root, "checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-10")
    rotate_checkpoints(ours, limit, best and ours / f"checkpoint-{best}")
    reference(str(theirs), limit, best and str(theirs / f"checkpoint-{best}"))
    assert left(ours) == left(theirs) == kept
    assert sorted(path.name for path in ours.iterdir()) == sorted(f"checkpoint-{step}" for step in kept)


def test_best_is_recognised_by_another_spelling_of_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "checkpoint-1", "checkpoint-2", "checkpoint-3")
    monkeypatch.chdir(tmp_path)
    rotate_checkpoints(".", 1, tmp_path / "checkpoint-1")
    assert left(tmp_path) == [1, 3]


def test_a_deletion_that_dies_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "checkpoint-1")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mainspring.checkpoint.staging.shutil.rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(tmp_path / "checkpoint-1")
    assert left(tmp_path) == []
    assert sort_checkpoints(tmp_path) == []


def test_a_deletion_that_is_refused_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    remove_checkpoint(tmp_path / "checkpoint-1")
    assert "could not delete" in caplog.text
    assert "checkpoint-1" in caplog.text
