from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.checkpoint import clean_stages, get_last_checkpoint, locked, read_manifest, staged, verify
from tests.helpers.checkpoints import facts, flip, names_in, write_checkpoint, write_files


def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def contents_of_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_nothing_shows_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out" / "checkpoint-20"
    with staged(target) as stage:
        (stage / "a").write_text("1")
        assert stage.parent == target.parent
        assert not target.exists()
        assert get_last_checkpoint(target.parent) is None
    assert contents(target) == {"a": "1"}
    assert names_in(target.parent) == ["checkpoint-20"]


def test_the_checkpoint_has_the_permissions_of_an_ordinary_folder(tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    with staged(tmp_path / "checkpoint-1"):
        pass
    assert (tmp_path / "checkpoint-1").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "checkpoint-20"
    write(target, old="0", both="0")
    with pytest.raises(type(failure)), staged(target) as stage:  # noqa: PT012 (the body is what fails)
        (stage / "both").write_text("1")
        raise failure
    assert contents(target) == {"old": "0", "both": "0"}
    assert names_in(tmp_path) == ["checkpoint-20"]


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_between_the_renames_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    target = tmp_path / "checkpoint-20"
    write(target, old="0")
    calls = []
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == call:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged(target) as stage:
        (stage / "new").write_text("1")
    assert contents(target) == {"old": "0"}
    assert names_in(tmp_path) == ["checkpoint-20"]


def test_files_already_there_are_taken_over_unless_rewritten(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-20"
    write(target, both="old", mine="kept")
    write(target / "adapter", deep="kept", both="old")
    (target / "link").symlink_to("mine")
    with staged(target) as stage:
        write(stage, both="new")
        write(stage / "adapter", both="new")
    files = contents(target)
    assert files.pop("link") == "kept"
    assert (target / "link").is_symlink()
    assert files == {"both": "new", "mine": "kept", "adapter/deep": "kept", "adapter/both": "new"}
    assert names_in(tmp_path) == ["checkpoint-20"]


def test_files_put_there_meanwhile_are_taken_over_too(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-20"
    with staged(target) as stage:
        write(target, **{"rng_state_1.pth": "another rank"})
        write(stage, **{"rng_state_0.pth": "this one"})
    assert contents(target) == {"rng_state_1.pth": "another rank", "rng_state_0.pth": "this one"}


def test_taking_over_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    write(tmp_path / "checkpoint-20", mine="kept")
    with staged(tmp_path / "checkpoint-20") as stage:
        write(stage, new="1")
    assert contents(tmp_path / "checkpoint-20") == {"mine": "kept", "new": "1"}


def test_weights_of_a_former_save_do_not_survive_beside_new_ones(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-20"
    stale = ["model.safetensors", "pytorch_model.bin", "model-00003-of-00003.safetensors"]
    write(target, **dict.fromkeys(stale, "old"), **{"adapter_model.safetensors": "kept"})
    with staged(target) as stage:
        write(stage, **{"model.safetensors.index.json": "new", "model-00001-of-00001.safetensors": "new"})
    assert contents(target) == {
        "model.safetensors.index.json": "new",
        "model-00001-of-00001.safetensors": "new",
        "adapter_model.safetensors": "kept",
    }


def test_an_optimizer_of_a_former_save_does_not_survive_beside_a_new_state(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-20"
    write(target, **{"optimizer.pt": "old", "progress.json": "old", "notes.txt": "kept"})
    with staged(target) as stage:
        write(stage, **{"trainer_state.json": "new"})
    assert contents(target) == {"trainer_state.json": "new", "notes.txt": "kept"}


def test_a_part_written_without_the_rest_keeps_the_rest(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-20"
    write(target, **{"optimizer.pt": "1", "trainer_state.json": "1", "model.safetensors": "1"})
    with staged(target) as stage:
        write(stage, **{"README.md": "2"})
    assert set(contents(target)) == {"optimizer.pt", "trainer_state.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize("manifest", [[], ["manifest.json"]])
def test_everything_is_flushed_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: list[str]
) -> None:
    events: list[tuple[str, str]] = []
    flush, rename = os.fsync, Path.rename

    def recorded_flush(descriptor: int) -> None:
        events.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        flush(descriptor)

    def recorded_rename(self: Path, to: Path) -> Path:
        events.append(("rename", Path(to).name))
        return rename(self, to)

    monkeypatch.setattr(os, "fsync", recorded_flush)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    with staged(tmp_path / "checkpoint-1", facts(1) if manifest else None) as stage:
        write(stage, a="1")
        write(stage / "sub", b="1")
    names = [name for _, name in events]
    assert sorted(names[:2]) == ["a", "b"]
    assert names[2:] == [*manifest, "sub", stage.name, "checkpoint-1", tmp_path.name]
    assert [name for kind, name in events if kind == "rename"] == ["checkpoint-1"]


def test_a_sealed_checkpoint_lists_what_was_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-20"
    write(target / "adapter", weights="mine")
    write(target, notes="mine")
    with staged(target, facts()) as stage:
        write(stage, **{"trainer_state.json": "{}"})
    manifest = read_manifest(target)
    assert manifest is not None
    assert set(manifest.files) == {"adapter/weights", "notes", "trainer_state.json"}
    assert verify(target) == []


def test_a_sealed_checkpoint_is_written_again(tmp_path: Path) -> None:
    target = write_checkpoint(tmp_path)
    (target / "notes").write_text("mine")
    with staged(target, facts(metric=2.0)) as stage:
        write_files(stage)
    manifest = read_manifest(target)
    assert manifest is not None
    assert manifest.facts.metric == 2.0
    assert "notes" in manifest.files
    assert verify(target) == []


def test_a_manifest_does_not_outlive_what_it_speaks_of(tmp_path: Path) -> None:
    target = write_checkpoint(tmp_path)
    with staged(target) as stage:
        write(stage, **{"trainer_state.json": "{}"})
    assert read_manifest(target) is None


def errno_of_a_save(target: Path) -> int | None:
    try:
        with staged(target, facts()) as stage:
            write_files(stage)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("there", [True, False])
def test_a_flush_that_fails_anywhere_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, there: bool
) -> None:
    older, target = write_checkpoint(tmp_path, 10), tmp_path / "checkpoint-20"
    if there:
        write_checkpoint(tmp_path, 20, run_id="the former")
    before = names_in(tmp_path)
    flush = os.fsync
    for last in itertools.count(1):
        calls = itertools.count(1)

        def failing(descriptor: int, calls: Iterator[int] = calls, last: int = last) -> None:
            if next(calls) == last:
                raise OSError(number, os.strerror(number))
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", failing)
        refused = errno_of_a_save(target)
        if refused is None:
            break
        assert refused == number
        assert names_in(tmp_path) == before
        assert verify(older) == []
        assert not there or (verify(target) == [] and read_manifest(target).facts.run_id == "the former")  # type: ignore[union-attr]
    assert last > len(list(target.rglob("*")))  # each file, and folders besides
    assert names_in(tmp_path) == ["checkpoint-10", "checkpoint-20", *(["checkpoint-20.other-run"] if there else [])]
    assert verify(older) == verify(target) == []


def test_the_same_folder_is_not_written_twice_at_once(tmp_path: Path) -> None:
    with staged(tmp_path / "checkpoint-1") as stage:
        write(stage, a="1")
        with pytest.raises(RuntimeError, match="already being written"), staged(tmp_path / "checkpoint-1"):
            pass
    assert contents(tmp_path / "checkpoint-1") == {"a": "1"}


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead, alive = dead_pid(), os.getppid()
    abandoned = [
        f".checkpoint-20.{dead}.partial",
        f".checkpoint-10.{dead}.deleted",
        # containers number their processes alike: the leftover of an earlier run may carry our own number
        f".checkpoint-30.{os.getpid()}.partial",
    ]
    kept = [f".checkpoint-20.{alive}.partial", "checkpoint-10", ".git", "checkpoint-10.5.partial"]
    for name in abandoned + kept:
        write(tmp_path / name, a="1")
    with staged(tmp_path / "checkpoint-40") as stage:
        write(stage, a="1")
        assert sorted(clean_stages(tmp_path)) == sorted(abandoned)
        assert stage.exists()
    assert names_in(tmp_path) == sorted([*kept, "checkpoint-40"])
    assert clean_stages(tmp_path / "nowhere") == []


def test_under_the_lock_a_leftover_is_one_whatever_its_number(tmp_path: Path) -> None:
    alive = os.getppid()
    write(tmp_path / f".checkpoint-20.{alive}.partial", a="1")
    write(tmp_path / f".checkpoint-10.{alive}.deleted", a="1")
    write(tmp_path / f".checkpoint-30.{alive}.replaced", old="0")
    with locked(tmp_path), staged(tmp_path / "checkpoint-40") as stage:
        write(stage, a="1")
        assert len(clean_stages(tmp_path)) == 3
        assert stage.exists()
    assert names_in(tmp_path) == ["checkpoint-30", "checkpoint-40"]
    assert contents(tmp_path / "checkpoint-30") == {"old": "0"}


def test_where_no_lock_could_be_had_a_living_number_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("mainspring.checkpoint.lock._lock_record", unsupported)
    write(tmp_path / f".checkpoint-20.{os.getppid()}.partial", a="1")
    with locked(tmp_path):
        assert clean_stages(tmp_path) == []


def test_the_stages_of_this_process_are_known_by_any_path(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    with staged(tmp_path / "link" / "checkpoint-1") as stage, locked(tmp_path / "out"):
        assert clean_stages(tmp_path / "out") == []
        assert stage.exists()


def test_another_runs_checkpoint_is_moved_aside_and_not_absorbed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = write_checkpoint(tmp_path, run_id="the former")
    before = contents_of_bytes(target)
    write(target, notes="a subclass's, for the new one")
    (target / "adapter" / "adapter_config.json").write_text("a subclass's, too")
    with staged(target, facts(run_id="the new")) as stage:
        write(stage, **{"trainer_state.json": "{}"})
    manifest = read_manifest(target)
    assert manifest is not None
    assert set(manifest.files) == {"adapter/adapter_config.json", "notes", "trainer_state.json"}
    assert verify(target) == []
    aside = tmp_path / "checkpoint-20.other-run"
    assert {name: aside.joinpath(name).read_bytes() for name in before if "adapter_config" not in name} == {
        name: data for name, data in before.items() if "adapter_config" not in name
    }
    assert names_in(tmp_path) == ["checkpoint-20", "checkpoint-20.other-run"]
    assert get_last_checkpoint(tmp_path) == str(target)
    assert f"{target} held a checkpoint of another run: moved aside to checkpoint-20.other-run" in caplog.text


def test_a_checkpoint_whose_manifest_is_damaged_is_nobodys_and_kept(tmp_path: Path) -> None:
    target = write_checkpoint(tmp_path)
    flip(target / "manifest.json", 60)
    with staged(target, facts()) as stage:
        write(stage, **{"trainer_state.json": "{}"})
    assert set(contents(target)) == {"trainer_state.json", "manifest.json"}
    assert names_in(tmp_path) == ["checkpoint-20", "checkpoint-20.other-run"]


def test_another_runs_checkpoint_survives_a_crash_before_it_was_moved(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, run_id="the former").rename(tmp_path / f".checkpoint-20.{dead_pid()}.replaced")
    write_checkpoint(tmp_path, run_id="the new")
    clean_stages(tmp_path)
    assert names_in(tmp_path) == ["checkpoint-20", "checkpoint-20.other-run"]
    manifest = read_manifest(tmp_path / "checkpoint-20.other-run")
    assert manifest is not None
    assert manifest.facts.run_id == "the former"


def test_random_states_of_a_former_save_do_not_survive_beside_a_new_state(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-20"
    write(target, **{"rng_state_0.pth": "old", "rng_state_1.pth": "old", "rng_state.pth": "old", "notes.txt": "kept"})
    with staged(target) as stage:
        write(stage, **{"trainer_state.json": "new", "rng_state_0.pth": "new"})
    assert contents(target) == {"trainer_state.json": "new", "rng_state_0.pth": "new", "notes.txt": "kept"}


def test_a_checkpoint_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    dead = dead_pid()
    write(tmp_path / f".checkpoint-20.{dead}.replaced", old="0")
    write(tmp_path / f".checkpoint-20.{dead}.partial", new="1")
    write(tmp_path / "checkpoint-30", new="1")
    write(tmp_path / f".checkpoint-30.{dead}.replaced", old="0")
    clean_stages(tmp_path)
    assert names_in(tmp_path) == ["checkpoint-20", "checkpoint-30"]
    assert contents(tmp_path / "checkpoint-20") == {"old": "0"}
    assert contents(tmp_path / "checkpoint-30") == {"new": "1"}
