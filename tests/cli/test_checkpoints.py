from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mainspring.checkpoint import Facts, locked, read_manifest, save_torch, seal
from mainspring.cli import main
from mainspring.cli.checkpoints.words import age_of, size_of
from mainspring.seeding import capture_rng
from tests.checkpoint import payloads


def write(folder: Path, step: int, run: str = "mine", manifest: bool = True, **facts: Any) -> Path:
    """A checkpoint as a run of a tiny model leaves it, without the run."""
    folder.mkdir(parents=True)
    torch.manual_seed(step)
    save_file({"a": torch.randn(4, 3), "b": torch.randn(3)}, folder / "model.safetensors")
    moments = {0: {"step": torch.tensor(1.0), "exp_avg": torch.randn(4, 3)}}
    save_torch({"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]}, folder / "optimizer.pt")
    save_torch({"last_epoch": step, "_last_lr": [0.1]}, folder / "scheduler.pt")
    save_torch(capture_rng(distributed=False), folder / "rng_state.pth")
    log = {"loss": 1.0, "step": step, "train_runtime": 1.5 * step}
    state = {"global_step": step, "best_model_checkpoint": None, "log_history": [log]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if manifest:
        (folder / "progress.json").write_text(json.dumps({"samples": 4 * step}))
        seal(folder, Facts(run_id=run, step=step, samples=4 * step, **facts))
    return folder


def change(folder: Path, name: str, **values: Any) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))


def seal_again(folder: Path) -> None:
    """Its run is then the one that wrote last."""
    manifest = read_manifest(folder)
    assert manifest is not None
    (folder / "manifest.json").unlink()
    seal(folder, manifest.facts)


def damage(file: Path) -> None:
    """One byte in the middle: the size stays."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    for step, metric in ((20, 0.5), (40, 0.25), (100, 0.75)):
        write(out / f"checkpoint-{step}", step, metric_name="eval_loss", metric=metric, best=metric < 0.75)
    return out


def ask(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["checkpoints", *map(str, words)])
    output = capsys.readouterr()
    return status, output.out, output.err


def rows(table: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


# ---- list ----


def test_a_table_of_all_oldest_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "list", run)
    size = size_of(sum(path.stat().st_size for path in (run / "checkpoint-20").iterdir()))
    header, *found, _ = rows(out)
    assert status == 0
    assert header == ["checkpoint", "step", "age", "size", "eval_loss", "valid"]
    assert [[*row[:2], *row[3:]] for row in found] == [
        ["checkpoint-20", "20", size, "0.5", "yes"],
        ["checkpoint-40", "40", size, "0.25", "best", "yes"],
        ["checkpoint-100", "100", size, "0.75", "newest", "yes"],
    ]


def test_one_that_is_not_valid_says_why_and_is_not_the_newest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-100" / "optimizer.pt").unlink()
    (run / "checkpoint-100" / "scheduler.pt").unlink()
    _, out, _ = ask(capsys, "list", run)
    assert rows(out)[2][-2:] == ["best, newest", "yes"]
    assert rows(out)[3][-1] == "no: optimizer.pt is missing (and 1 more)"


def test_a_changed_byte_shows_only_when_all_is_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run / "checkpoint-40" / "model.safetensors")
    assert rows(ask(capsys, "list", run)[1])[2][-1] == "yes"
    out = ask(capsys, "list", run, "--full")[1]
    assert rows(out)[2][-1] == "no: model.safetensors is not what was written: its hash differs"
    assert "--full" not in out


def test_a_checkpoint_of_the_reference_is_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run / "checkpoint-30", 30, manifest=False)
    change(run / "checkpoint-30", "trainer_state.json", best_model_checkpoint="elsewhere/out/checkpoint-20")
    os.utime(run / "checkpoint-30" / "trainer_state.json", (1, 1))
    _, out, _ = ask(capsys, "list", run)
    assert rows(out)[1][:2] == ["checkpoint-30", "30"], "another run's, and older"
    assert rows(out)[1][-1] == "yes, without a manifest: only its structure is known"
    change(run / "checkpoint-30", "trainer_state.json", global_step=200)
    _, out, _ = ask(capsys, "list", run)
    assert [row[0] for row in rows(out)[1:5]] == ["checkpoint-20", "checkpoint-40", "checkpoint-100", "checkpoint-30"]
    assert "best" in rows(out)[1]


def test_the_best_of_another_run_is_not_this_ones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run / "checkpoint-500", 500, run="another", best=True)
    seal_again(run / "checkpoint-100")
    _, out, _ = ask(capsys, "list", run)
    assert [row[0] for row in rows(out) if "best" in row] == ["checkpoint-40"]
    assert [row[0] for row in rows(out) if "newest" in row] == ["checkpoint-100"], "of the run that wrote last"


def test_a_damaged_manifest_and_state_are_no_trouble(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-40" / "manifest.json").write_text("{")
    (run / "checkpoint-40" / "trainer_state.json").write_text("[")
    status, out, _ = ask(capsys, "list", run)
    assert status == 0
    (row,) = [row for row in rows(out) if row[0] == "checkpoint-40"]
    assert row[1] == "?"
    assert row[-1].startswith("no: manifest.json is damaged")


def test_what_was_moved_aside_is_mentioned(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-20").rename(run / "checkpoint-20.damaged")
    assert "moved aside, as it was not valid: checkpoint-20.damaged" in ask(capsys, "list", run)[1]


def test_a_single_checkpoint_and_an_empty_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ask(capsys, "list", run / "checkpoint-40")
    assert [row[0] for row in rows(out)[:-1]] == ["checkpoint", "checkpoint-40"]
    (run / "empty").mkdir()
    assert ask(capsys, "list", run / "empty")[:2] == (0, f"no checkpoints in {run / 'empty'}\n")


@pytest.mark.parametrize("command", ["list", "verify", "prune --keep 1"])
def test_a_folder_that_is_not_there_is_trouble(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = ask(capsys, *command.split(), tmp_path / "nowhere")
    assert (status, out) == (2, "")
    assert "nowhere is not " in err
    assert not (tmp_path / "nowhere").exists()


# ---- verify ----


def test_every_byte_is_verified(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "verify", run)
    assert status == 0
    assert [line.split(" (")[0] for line in out.splitlines()] == [
        "checkpoint-20: valid",
        "checkpoint-40: valid",
        "checkpoint-100: valid",
    ]
    damage(run / "checkpoint-40" / "rng_state.pth")
    status, out, _ = ask(capsys, "verify", run)
    assert status == 1
    assert "checkpoint-40: damaged\n  rng_state.pth is not what was written: its hash differs\n" in out
    assert ask(capsys, "verify", run / "checkpoint-40")[0] == 1
    assert ask(capsys, "verify", run / "checkpoint-100")[0] == 0


def test_nothing_to_verify_is_trouble_and_the_references_is_sound(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "empty").mkdir()
    assert ask(capsys, "verify", run / "empty")[0] == 2
    folder = write(run / "empty" / "checkpoint-1", 1, manifest=False)
    status, out, _ = ask(capsys, "verify", folder)
    assert (status, out.split(";")[0]) == (0, "checkpoint-1: sound in structure")


@pytest.mark.parametrize("words", [["list"], ["list", "--full"], ["verify"]])
@pytest.mark.parametrize("manifest", [True, False])
def test_it_answers_without_torch(tmp_path: Path, words: list[str], manifest: bool) -> None:
    write(tmp_path / "checkpoint-1", 1, manifest=manifest)
    code = (
        "import sys; from mainspring.cli import main; "
        "status = main(['checkpoints', *sys.argv[1:]]); sys.exit(status or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, *words, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


# ---- compare ----


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    first, second = (write(tmp_path / out / "checkpoint-3", 3) for out in ("one", "two"))
    return first, second


def test_equal_ones_are_equal_wherever_they_lie_and_however_long_they_took(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    log = {"loss": 1.0, "step": 3, "train_runtime": 99.0, "data_wait_fraction": 0.5, "mfu": 0.1}
    change(second, "trainer_state.json", log_history=[log], best_model_checkpoint="two/checkpoint-2")
    change(first, "trainer_state.json", best_model_checkpoint="one/checkpoint-2")
    status, out, _ = ask(capsys, "compare", first, second)
    assert status == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "weights",
        "optimizer",
        "schedule",
        "random states",
        "trainer state",
        "progress",
    ]
    assert "weights: equal (2 values)" in out


def test_the_first_tensor_that_differs_is_named(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = pair
    weights = load_file(second / "model.safetensors")
    weights["b"][1] += 0.5
    save_file(weights, second / "model.safetensors")
    change(second, "trainer_state.json", global_step=4)
    status, out, _ = ask(capsys, "compare", first, second)
    assert (status, out) == (1, "weights: b differs: max abs difference 0.5, in 1 of 3 values\n")


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0]), "max abs difference 0, in 1 of 1 values"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan]), "max abs difference nan, in 1 of 2 values"),
        (torch.tensor([1, 2]), torch.tensor([1, 5]), "max abs difference 3, in 1 of 2 values"),
        (torch.tensor(True), torch.tensor(False), "max abs difference 1, in 1 of 1 values"),
        (torch.tensor([1j]), torch.tensor([0j]), "max abs difference 1, in 1 of 1 values"),
        (torch.ones(2), torch.ones(3), "float32 of shape [2] and float32 of shape [3]"),
        (torch.ones(2), torch.ones(2).half(), "float32 of shape [2] and float16 of shape [2]"),
        (torch.ones(1), 1.0, "only one of them is a tensor"),
        (1, 2, "1 and 2"),
        (1, 1.0, "1 and 1.0"),
        (None, False, "None and False"),
    ],
)
def test_how_two_values_differ(
    pair: tuple[Path, Path], one: Any, other: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, value in zip(pair, (one, other), strict=True):
        save_torch({"state": {"x": value}}, folder / "optimizer.pt")
    status, out, _ = ask(capsys, "compare", *pair)
    assert status == 1
    assert out.splitlines()[-1] == f"optimizer: state.x differs: {words}"


def test_what_is_not_a_number_equals_itself(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for folder in pair:
        save_torch({"x": math.nan, "y": torch.tensor(math.nan)}, folder / "optimizer.pt")
    assert ask(capsys, "compare", *pair)[0] == 0


def test_pickled_weights_beside_others_are_not_those_that_count(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.ones(1)}, pair[0] / "pytorch_model.bin")
    assert ask(capsys, "compare", *pair)[0] == 0


@pytest.mark.parametrize(
    ("name", "state", "line"),
    [
        ("scheduler.pt", {"last_epoch": 3, "_last_lr": [0.2]}, "schedule: _last_lr.0 differs: 0.1 and 0.2"),
        ("scheduler.pt", {"last_epoch": 3, "_last_lr": [0.1, 0.1]}, "schedule: _last_lr.1 is in {second} only"),
        ("scheduler.pt", {"last_epoch": 3}, "schedule: _last_lr.0 is in {first} only"),
        ("scaler.pt", {"scale": 1.0}, "loss scale: scale is in {second} only"),
        ("rng_state_1.pth", {"cpu": 1}, "random states: rng_state_1.cpu is in {second} only"),
    ],
)
def test_the_parts_are_compared_in_their_order(
    pair: tuple[Path, Path], name: str, state: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    save_torch(state, second / name)
    change(second, "trainer_state.json", global_step=4)
    status, out, _ = ask(capsys, "compare", first, second)
    assert status == 1
    assert out.splitlines()[-1] == line.format(first=first, second=second)


def test_random_states_trainer_state_and_progress_are_compared(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    change(second, "progress.json", samples=13)
    assert ask(capsys, "compare", first, second)[1].splitlines()[-1] == "progress: samples differs: 12 and 13"
    change(second, "trainer_state.json", log_history=[{"loss": 1.5, "step": 3}])
    last = ask(capsys, "compare", first, second)[1].splitlines()[-1]
    assert last == "trainer state: log_history.0.loss differs: 1.0 and 1.5"
    states = capture_rng(distributed=False)
    states["numpy"][1][7] += 1
    save_torch(states, second / "rng_state.pth")
    last = ask(capsys, "compare", first, second)[1].splitlines()[-1]
    assert last == "random states: rng_state.numpy.1 differs: max abs difference 1, in 1 of 624 values"


def test_sharded_and_pickled_weights_are_the_same_weights(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    weights = load_file(second / "model.safetensors")
    (second / "model.safetensors").unlink()
    save_file({"a": weights["a"]}, second / "model-00001-of-00002.safetensors")
    save_file({"b": weights["b"]}, second / "model-00002-of-00002.safetensors")
    assert ask(capsys, "compare", first, second)[0] == 0
    for shard in second.glob("model-*"):
        shard.unlink()
    torch.save(weights, second / "pytorch_model.bin")
    assert ask(capsys, "compare", first, second)[0] == 0
    for folder, value in ((first, 1.0), (second, 2.0)):
        (folder / "mine").mkdir()
        save_file({"lora": torch.tensor([value])}, folder / "mine" / "adapter_model.safetensors")
    status, out, _ = ask(capsys, "compare", first, second)
    assert (status, out.split(" differs")[0]) == (1, "weights: mine: adapter_model: lora")


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "trainer_state.json", "rng_state.pth"])
def test_what_cannot_be_read_is_trouble_and_executes_nothing(
    pair: tuple[Path, Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    (second / name).write_bytes(payloads.by_global(tmp_path / "executed"))
    status, _, err = ask(capsys, "compare", first, second)
    assert status == 2
    assert str(second / name) in err
    assert not (tmp_path / "executed").exists()
    for command in ("list", "verify"):
        ask(capsys, command, second)
    assert not (tmp_path / "executed").exists()


def test_what_is_not_a_checkpoint_is_trouble(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = pair
    status, _, err = ask(capsys, "compare", first, first.parent)
    assert status == 2
    assert f"{first.parent} is not a checkpoint" in err


# ---- prune ----


def names_in(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.iterdir()), key=lambda name: int(re.findall(r"\d+", name)[0]))


def test_the_oldest_go_but_the_best_and_the_newest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run / "checkpoint-60", 60)
    status, out, _ = ask(capsys, "prune", run, "--keep", 1)
    assert status == 0
    assert names_in(run) == ["checkpoint-40", "checkpoint-100"]
    assert re.sub(r" \([^)]* k?B\)", "", out).splitlines() == [
        "deleted checkpoint-20",
        "deleted checkpoint-60",
        "kept: checkpoint-40 (best), checkpoint-100 (newest)",
    ]
    assert ask(capsys, "prune", run, "--keep", 1)[1].splitlines()[0] == "nothing to delete"


def test_the_best_is_the_one_that_the_newest_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-100" / "manifest.json").unlink()
    change(run / "checkpoint-100", "trainer_state.json", best_model_checkpoint="gone/out/checkpoint-20")
    seal(run / "checkpoint-100", Facts("mine", 100, 400))
    ask(capsys, "prune", run, "--keep", 2)
    assert names_in(run) == ["checkpoint-20", "checkpoint-40", "checkpoint-100"]


def test_a_dry_run_deletes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "prune", run, "--keep", 1, "--dry-run")
    assert status == 0
    assert out.startswith("would delete checkpoint-20 (")
    assert names_in(run) == ["checkpoint-20", "checkpoint-40", "checkpoint-100"]


def test_others_are_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run / "checkpoint-1", 1, run="another")
    write(run / "checkpoint-2", 2, manifest=False)
    seal_again(run / "checkpoint-100")
    for aside in ("checkpoint-7.other-run", "checkpoint-8.damaged.2"):
        write(run / aside, 7)
    _, out, _ = ask(capsys, "list", run)
    assert out.splitlines()[-2:] == [
        "moved aside, as another run wrote a checkpoint of its name: checkpoint-7.other-run",
        "moved aside, as it was not valid: checkpoint-8.damaged.2",
    ]
    _, out, _ = ask(capsys, "prune", run, "--keep", 1)
    for aside in ("checkpoint-7.other-run", "checkpoint-8.damaged.2"):
        shutil.rmtree(run / aside)
    assert names_in(run) == ["checkpoint-1", "checkpoint-2", "checkpoint-40", "checkpoint-100"]
    assert out.splitlines()[-1] == "left alone: checkpoint-1 (another run's), checkpoint-2 (no manifest)"


def test_the_only_valid_one_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (40, 100):
        damage(run / f"checkpoint-{step}" / "model.safetensors")
    (run / "checkpoint-100" / "rng_state.pth").unlink()
    _, out, _ = ask(capsys, "prune", run, "--keep", 1)
    assert "checkpoint-20" in names_in(run)
    assert "checkpoint-100 (not valid)" in out


def test_without_a_manifest_nothing_is_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        write(tmp_path / f"checkpoint-{step}", step, manifest=False)
    status, _, err = ask(capsys, "prune", tmp_path, "--keep", 1)
    assert status == 2
    assert "nothing is deleted" in err
    assert names_in(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert ask(capsys, "prune", tmp_path / "checkpoint-1", "--keep", 1)[0] == 2


def test_a_folder_in_use_is_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(run):
        status, _, err = ask(capsys, "prune", run, "--keep", 1)
        assert ask(capsys, "prune", run, "--keep", 1, "--dry-run")[0] == 0
    assert status == 2
    assert "is in use by" in err
    assert names_in(run) == ["checkpoint-20", "checkpoint-40", "checkpoint-100"]


def test_what_could_not_be_deleted_is_said(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mainspring.cli.checkpoints.pruning.remove_checkpoint", lambda folder: None)
    status, out, _ = ask(capsys, "prune", run, "--keep", 1)
    assert status == 1
    assert out.splitlines()[0] == "could not delete checkpoint-20"


@pytest.mark.parametrize("keep", ["0", "-1", "two"])
def test_keeping_none_is_refused(run: Path, keep: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        ask(capsys, "prune", run, f"--keep={keep}")
    assert stopped.value.code == 2
    assert names_in(run) == ["checkpoint-20", "checkpoint-40", "checkpoint-100"]


# ---- words ----


def test_without_a_command_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys)
    assert status == 0
    assert all(command in out for command in ("list", "verify", "compare", "prune"))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (999_600, "1.0 MB"), (4_200_000_000, "4.2 GB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size_of(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (86400, "1 d"), (10**7, "115 d")]
)
def test_ages(seconds: int, text: str) -> None:
    now = datetime.now(timezone.utc)
    assert age_of(now - timedelta(seconds=seconds), now) == text
