from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mainspring.checkpoint import (
    Facts,
    FileRecord,
    Manifest,
    NewerManifestError,
    read_manifest,
    reseal,
    seal,
    staged,
    verify,
)
from mainspring.checkpoint.hashing import record_file
from mainspring.checkpoint.manifest import damage
from mainspring.checkpoint.manifest_text import encode
from mainspring.errors import CheckpointError
from tests.helpers import models
from tests.helpers.checkpoints import (
    PLAIN_FILES,
    PRETRAINED_FILES,
    facts,
    flip,
    names_in,
    write_checkpoint,
    write_files,
    write_foreign,
    write_small,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every kind of file: transformers' model and tokenizer, state of ours, an adapter in a folder."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoint-20"
    with staged(folder, facts()) as stage:
        write_files(stage, model=models.tiny_gpt2(), tokenizer=models.word_tokenizer())
    return folder


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint-20"))


def later_than(path: Path) -> None:
    """Return when the file system's clock has moved on since `path` was changed."""
    probe = path.with_name(f"{path.name}.probe")
    while True:
        probe.write_text("")
        if probe.stat().st_mtime_ns > path.stat().st_ctime_ns:
            probe.unlink()
            return


# ---- what is written ----


def test_a_manifest_lists_every_file_with_its_size_and_hash(whole: Path) -> None:
    manifest = read_manifest(whole)
    assert manifest is not None
    assert tuple(manifest.files) == PRETRAINED_FILES
    assert manifest.files == {name: record_file(whole / name) for name in PRETRAINED_FILES}
    assert manifest.size == sum((whole / name).stat().st_size for name in PRETRAINED_FILES)


def test_the_facts_survive(tmp_path: Path) -> None:
    told = facts(
        3, world_size=2, max_steps=30, metric_name="eval_f1", metric=1 / 3, best=True, metrics={"eval_f1": 1 / 3}
    )
    manifest = read_manifest(write_small(tmp_path, 3))
    assert manifest is not None
    assert manifest.facts == facts(3)
    (tmp_path / "other").mkdir()
    written = seal(tmp_path / "other", told)
    assert read_manifest(tmp_path / "other") == written
    assert written.facts == told


def test_metrics_may_be_numbers_of_numpy_and_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    given = {"eval_loss": np.float32(0.5), "eval_count": np.int64(7), "eval_table": [[1, 2]], "eval_name": "x"}
    seal(tmp_path, Facts("run", 1, 1, metric=np.float32(0.5), metrics=given))
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.facts.metric == 0.5
    assert manifest.facts.metrics == {"eval_loss": 0.5, "eval_count": 7.0}


def test_the_versions_of_what_wrote_it_are_noted(whole: Path) -> None:
    manifest = read_manifest(whole)
    assert manifest is not None
    assert manifest.libraries["torch"] == torch.__version__
    assert manifest.libraries["python"] == sys.version.split()[0]
    assert {"mainspring", "numpy", "safetensors"} <= set(manifest.libraries)


def test_links_and_what_a_dead_process_left_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "manifest.json.partial").write_text("half")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "manifest.json").write_text("somebody's own")
    assert set(seal(tmp_path, facts()).files) == {"file", "folder/manifest.json"}
    assert read_manifest(tmp_path) is not None


def test_a_file_of_another_that_is_called_like_a_manifest_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("somebody's own")
    with pytest.raises(FileExistsError):
        seal(tmp_path, facts())
    assert (tmp_path / "manifest.json").read_text() == "somebody's own"


def test_a_save_that_outlives_the_program_is_finished(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    program = """
        import sys, threading
        from mainspring.checkpoint import Facts, seal

        def save():
            threading.main_thread().join()
            seal(sys.argv[1], Facts("run", 1, 1))

        threading.Thread(target=save).start()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), tmp_path], capture_output=True, text=True)
    assert done.stderr == ""
    assert read_manifest(tmp_path) is not None


# ---- what does not count ----


def test_what_was_written_counts(whole: Path, tmp_path: Path) -> None:
    assert verify(whole) == []
    assert verify(write_checkpoint(tmp_path)) == []


def test_it_counts_wherever_it_is_copied_to_and_whatever_is_added(checkpoint: Path) -> None:
    (checkpoint / "notes.txt").write_text("mine")
    assert verify(checkpoint.rename(checkpoint.with_name("best model"))) == []


def test_it_counts_through_a_link_to_the_whole_of_it(checkpoint: Path) -> None:
    link = checkpoint.with_name("latest")
    link.symlink_to(checkpoint.name)
    assert verify(link) == []


@pytest.mark.parametrize("name", PRETRAINED_FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_changed_byte_in_any_file_is_noticed(checkpoint: Path, name: str, place: float) -> None:
    size = (checkpoint / name).stat().st_size
    flip(checkpoint / name, min(int(place * size), size - 1))
    assert verify(checkpoint) == [f"{name} is not what was written: its hash differs"]


@pytest.mark.parametrize("name", PRETRAINED_FILES)
@pytest.mark.parametrize("change", [-1, 1, None])
def test_a_cut_or_grown_file_is_noticed(checkpoint: Path, name: str, change: int | None) -> None:
    size = (checkpoint / name).stat().st_size
    new = 0 if change is None else size + change
    os.truncate(checkpoint / name, new)
    assert verify(checkpoint) == [f"{name} has {new} bytes, and {size} were written"]


@pytest.mark.parametrize("name", PRETRAINED_FILES)
def test_a_missing_file_is_noticed(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    assert verify(checkpoint) == [f"{name} is missing"]


def test_all_damaged_files_are_named(checkpoint: Path) -> None:
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        flip(checkpoint / name, -1)
    reasons = verify(checkpoint)
    assert [reason.split()[0] for reason in reasons] == ["adapter/adapter_model.safetensors", "model.safetensors"]


def test_any_changed_byte_of_the_manifest_is_noticed(tmp_path: Path) -> None:
    path = write_small(tmp_path, metric_name="eval_loss", metric=0.25) / "manifest.json"
    text = path.read_bytes()
    believed = []
    for position in range(len(text)):
        for other in (0x20, 0x31, text[position] ^ 0x20):
            path.write_bytes(text[:position] + bytes([other]) + text[position + 1 :])
            if other != text[position] and not verify(path.parent):
                believed.append((position, other))
    assert believed == []
    path.write_bytes(text)
    assert verify(path.parent) == []


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_cut_off_manifest_is_noticed(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "manifest.json"
    path.write_bytes(path.read_bytes()[:keep])
    (reason,) = verify(checkpoint)
    assert reason.startswith("manifest.json is damaged")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"name": "an app"}', "something else"),
        (b'["a"]', "something else"),
        (b"null", "something else"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"format": "mainspring checkpoint", "version": 1}', "not the one that was written"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(checkpoint: Path, content: bytes, why: str) -> None:
    (checkpoint / "manifest.json").write_bytes(content)
    (reason,) = verify(checkpoint)
    assert why in reason
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(checkpoint)


def forge(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Put a manifest with another content and a right seal into a checkpoint."""
    manifest = read_manifest(folder)
    assert manifest is not None
    (folder / "manifest.json").write_bytes(encode(change(manifest)))


def test_a_manifest_of_a_version_to_come_is_refused(checkpoint: Path) -> None:
    forge(checkpoint, lambda manifest: replace(manifest, version=2))
    assert verify(checkpoint) == ["manifest.json has version 2, and only 1 is known here: a newer mainspring wrote it"]
    with pytest.raises(NewerManifestError, match=r"checkpoint-\d+: manifest.json has version 2"):
        damage(checkpoint)


@pytest.mark.parametrize("strange", [{"step": "20"}, {"step": None}, {"run_id": 7}])
def test_facts_of_another_kind_are_refused(checkpoint: Path, strange: dict[str, object]) -> None:
    forge(checkpoint, lambda manifest: replace(manifest, facts=replace(manifest.facts, **strange)))
    (reason,) = verify(checkpoint)
    assert "are not a text and a number" in reason


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/hostname", "adapter/../../outside", "..", ".", "", "adapter//x", "a\0b", "manifest.json"],
)
def test_a_manifest_that_lists_what_is_not_inside_is_refused(checkpoint: Path, name: str) -> None:
    outside = checkpoint.parent / "outside"
    outside.write_text("secret")
    record = record_file(outside)
    forge(checkpoint, lambda manifest: replace(manifest, files={**manifest.files, name: record}))
    (reason,) = verify(checkpoint)
    assert "is not a path inside a checkpoint" in reason


@pytest.mark.parametrize("record", [FileRecord(-1, "0" * 16), FileRecord("12", "0" * 16), FileRecord(None, None)])  # type: ignore[arg-type]
def test_a_record_of_nonsense_matches_no_file(checkpoint: Path, record: FileRecord) -> None:
    forge(checkpoint, lambda manifest: replace(manifest, files={**manifest.files, "config.json": record}))
    (reason,) = verify(checkpoint)
    assert reason.startswith("config.json has ")


def test_a_link_in_place_of_a_file_is_refused(checkpoint: Path) -> None:
    for name in ("model.safetensors", "optimizer.pt"):
        (checkpoint / name).rename(checkpoint.parent / name)
    (checkpoint / "model.safetensors").symlink_to(checkpoint.parent / "model.safetensors")
    (checkpoint / "optimizer.pt").symlink_to("nowhere")
    reasons = verify(checkpoint)
    assert [reason.split(":")[0] for reason in reasons] == [
        "model.safetensors is a symbolic link, or lies behind one",
        "optimizer.pt is a symbolic link, or lies behind one",
    ]


def test_a_link_in_place_of_a_folder_is_refused(checkpoint: Path) -> None:
    (checkpoint / "adapter").rename(checkpoint.parent / "adapter")
    (checkpoint / "adapter").symlink_to(checkpoint.parent / "adapter")
    assert len(verify(checkpoint)) == 2


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_not_a_file_is_not_read(checkpoint: Path, make: Callable[[Path], object]) -> None:
    (checkpoint / "optimizer.pt").unlink()
    make(checkpoint / "optimizer.pt")
    assert verify(checkpoint) == ["optimizer.pt is not a regular file"]


def test_a_file_that_cannot_be_read_is_a_reason_and_the_others_are_read(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> FileRecord:
        if path.name == "optimizer.pt":
            raise OSError(errno.EIO, "Input/output error")
        return record_file(path)

    monkeypatch.setattr("mainspring.checkpoint.manifest.record_file", failing)
    flip(checkpoint / "scaler.pt", 0)
    assert verify(checkpoint) == [
        "optimizer.pt cannot be read: [Errno 5] Input/output error",
        "scaler.pt is not what was written: its hash differs",
    ]
    with pytest.raises(OSError, match="Input/output error") as caught:
        damage(checkpoint)
    assert caught.value.filename == str(checkpoint / "optimizer.pt")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", ["manifest.json", "trainer_state.json"])
def test_what_the_system_does_not_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    """With a manifest, and in a checkpoint of the reference."""
    folder = write_checkpoint(tmp_path) if name == "manifest.json" else write_foreign(tmp_path)
    opening = Path.open

    def failing(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == name:
            raise OSError(number, os.strerror(number))
        return opening(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(OSError, match=name) as caught:
        damage(folder)
    assert caught.value.errno == number
    assert verify(folder) == [f"{folder / name} cannot be read: {os.strerror(number)}"]


def test_nothing_large_is_read_where_a_size_tells(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("mainspring.checkpoint.manifest.record_file")
    os.truncate(checkpoint / "config.json", 3)
    assert len(verify(checkpoint)) == 1


def test_a_checkpoint_without_a_state_cannot_be_resumed_from(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").unlink()
    reseal(checkpoint)
    assert verify(checkpoint) == ["trainer_state.json is missing"]


# ---- without a manifest ----


def test_a_checkpoint_of_ours_does_not_count_without_its_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    (reason,) = verify(checkpoint)
    assert reason.startswith("manifest.json is missing beside progress.json")
    (checkpoint / "progress.json").unlink()
    (reason,) = verify(checkpoint)
    assert reason.startswith("manifest.json is missing beside training_args.json")


def test_a_checkpoint_of_the_reference_counts_by_its_structure(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path)
    assert verify(folder) == []
    os.truncate(folder / "optimizer.pt", 100)
    (reason,) = verify(folder)
    assert reason.startswith("optimizer.pt is damaged")


def test_a_missing_folder_and_a_file_do_not_count(tmp_path: Path) -> None:
    assert verify(tmp_path / "nowhere") == [f"{tmp_path / 'nowhere'} does not exist"]
    (tmp_path / "file").write_text("")
    assert len(verify(tmp_path / "file")) == 1


# ---- after hooks ----


def test_a_changed_an_added_and_a_deleted_file_are_taken_into_the_manifest(checkpoint: Path) -> None:
    before = read_manifest(checkpoint)
    flip(checkpoint / "trainer_state.json", 5)
    (checkpoint / "adapter" / "README.md").write_text("mine")
    (checkpoint / "scaler.pt").unlink()
    assert len(verify(checkpoint)) == 1
    after = reseal(checkpoint)
    assert before is not None
    assert after is not None
    assert after == read_manifest(checkpoint)
    assert after.facts == before.facts
    assert {*after.files, "scaler.pt"} == {*before.files, "adapter/README.md"}
    assert verify(checkpoint) == []
    assert "manifest.json.partial" not in names_in(checkpoint)


def test_nothing_is_written_where_nothing_changed(checkpoint: Path) -> None:
    (checkpoint / "config.json").touch()
    status = (checkpoint / "manifest.json").stat()
    assert reseal(checkpoint) == read_manifest(checkpoint)
    after = (checkpoint / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)


def test_only_what_was_touched_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"large")
    (tmp_path / "trainer_state.json").write_text("12")
    later_than(tmp_path / "trainer_state.json")
    seal(tmp_path, facts())
    # Of the same size, and with its old time: as a copy that keeps times would leave it.
    times = (tmp_path / "trainer_state.json").stat()
    (tmp_path / "trainer_state.json").write_text("21")
    os.utime(tmp_path / "trainer_state.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    read = []

    def recorded(path: Path) -> FileRecord:
        read.append(path.name)
        return record_file(path)

    monkeypatch.setattr("mainspring.checkpoint.hashing.record_file", recorded)
    reseal(tmp_path)
    assert read == ["trainer_state.json"]
    assert verify(tmp_path) == []


def test_a_file_that_changed_at_the_moment_of_sealing_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("12")
    seal(tmp_path, facts())
    (tmp_path / "trainer_state.json").write_text("21")
    now = (tmp_path / "trainer_state.json").stat().st_ctime_ns
    os.utime(tmp_path / "manifest.json", ns=(now, now))  # both in one tick of the file system's clock
    reseal(tmp_path)
    assert verify(tmp_path) == []


def test_an_interrupted_reseal_leaves_the_old_manifest(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (checkpoint / "manifest.json").read_bytes()
    (checkpoint / "README.md").write_text("mine")

    def die(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(OSError, match="Input/output error"):
            reseal(checkpoint)
    assert (checkpoint / "manifest.json").read_bytes() == before
    assert verify(checkpoint) == []
    manifest = reseal(checkpoint)
    assert manifest is not None
    assert "README.md" in manifest.files
    assert not any("partial" in name for name in (*manifest.files, *names_in(checkpoint)))


def test_what_was_never_sealed_is_not_sealed_by_a_hook(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path)
    assert reseal(folder) is None
    assert read_manifest(folder) is None


def test_a_damaged_manifest_is_not_mended(checkpoint: Path) -> None:
    flip(checkpoint / "manifest.json", 50)
    with pytest.raises(CheckpointError):
        reseal(checkpoint)
    assert verify(checkpoint) != []


def test_the_plain_checkpoint_of_the_helpers_has_these_files(tmp_path: Path) -> None:
    manifest = read_manifest(write_checkpoint(tmp_path))
    assert manifest is not None
    assert tuple(manifest.files) == PLAIN_FILES
