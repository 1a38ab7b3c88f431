from __future__ import annotations

import os
from pathlib import Path

import pytest

from mainspring.checkpoint import (
    checkpoint_name,
    checkpoint_step,
    get_last_checkpoint,
    prune,
    remove_checkpoint,
    rotate_checkpoints,
    sort_checkpoints,
)
from tests.helpers.checkpoints import RUN, flip, write_foreign, write_small


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


# ---- by manifest ----


def written(root: Path, *steps: int) -> None:
    for step in steps:
        write_small(root, step)


@pytest.mark.parametrize(
    ("limit", "protected", "kept"),
    [
        (None, [], [1, 2, 3, 10]),
        (0, [], [1, 2, 3, 10]),
        (4, [], [1, 2, 3, 10]),
        (3, [], [2, 3, 10]),
        (1, [], [10]),
        (1, [10], [10]),
        (1, [2], [2, 10]),
        (2, [1], [1, 10]),
        (2, [1, 2], [1, 2, 10]),
        (3, [1], [1, 3, 10]),
    ],
)
@pytest.mark.parametrize("just_written", [True, False])
def test_the_oldest_of_a_run_go(
    tmp_path: Path, limit: int | None, protected: list[int], kept: list[int], just_written: bool
) -> None:
    written(tmp_path, 1, 2, 3, 10)
    spared = [tmp_path / f"checkpoint-{step}" for step in protected]
    deleted = prune(tmp_path, RUN, limit, spared, tmp_path / "checkpoint-10" if just_written else None)
    assert left(tmp_path) == kept
    assert deleted == [str(tmp_path / f"checkpoint-{step}") for step in (1, 2, 3, 10) if step not in kept]
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_others_are_neither_counted_nor_touched(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 3)
    write_small(tmp_path, 4, run_id="another")
    write_foreign(tmp_path, 5)
    flip(write_small(tmp_path, 6) / "manifest.json", 100)
    make(tmp_path, "checkpoint-7")
    prune(tmp_path, RUN, 2, written=tmp_path / "checkpoint-3")
    assert left(tmp_path) == [2, 3, 4, 5, 6, 7]


def test_neither_name_nor_time_makes_one_old(tmp_path: Path) -> None:
    write_small(tmp_path, step=5, name="checkpoint-1")
    write_small(tmp_path, step=3, name="checkpoint-900")
    os.utime(tmp_path / "checkpoint-1", (1, 1))
    prune(tmp_path, RUN, 1)
    assert left(tmp_path) == [1]


def test_the_last_that_was_the_best_stays(tmp_path: Path) -> None:
    for step, best in enumerate([True, False, True, False, False]):
        write_small(tmp_path, step, metric_name="eval_loss", metric=1.0, best=best)
    prune(tmp_path, RUN, 1)
    assert left(tmp_path) == [2, 4]


def test_what_was_just_written_stays_though_older_ones_have_larger_steps(tmp_path: Path) -> None:
    written(tmp_path, 5, 20, 30)
    prune(tmp_path, RUN, 1, written=tmp_path / "checkpoint-5")
    assert left(tmp_path) == [5, 30]


def test_a_protected_one_is_recognised_by_another_spelling_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, 1, 2, 3)
    monkeypatch.chdir(tmp_path)
    prune(".", RUN, 1, [tmp_path / "checkpoint-1"], "checkpoint-3")
    assert left(tmp_path) == [1, 3]


@pytest.mark.parametrize(("damaged", "kept"), [([], [3]), ([3], [2, 3]), ([2, 3], [1, 3]), ([1, 2, 3], [3])])
def test_the_only_valid_one_stays(tmp_path: Path, damaged: list[int], kept: list[int]) -> None:
    written(tmp_path, 1, 2, 3)
    for step in damaged:
        flip(tmp_path / f"checkpoint-{step}" / "weights.bin", 0)
    prune(tmp_path, RUN, 1)
    assert left(tmp_path) == kept


def test_nothing_is_read_where_the_newest_is_known_to_be_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 1, 2, 3)
    monkeypatch.delattr("mainspring.checkpoint.folders.verify")
    prune(tmp_path, RUN, 1, written=tmp_path / "checkpoint-3")
    assert left(tmp_path) == [3]


def test_one_that_cannot_be_deleted_is_not_among_the_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, 1, 2)

    def refused(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refused)
    assert prune(tmp_path, RUN, 1, written=tmp_path / "checkpoint-2") == []
    assert left(tmp_path) == [1, 2]
    assert "could not delete" in caplog.text
