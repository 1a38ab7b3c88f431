from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mainspring.checkpoint import check_structure


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-2"
    (folder / "mine").mkdir(parents=True)
    for name in ("trainer_state.json", "progress.json", "config.json", "mine/adapter_config.json"):
        (folder / name).write_text("{}")
    for name in ("model-00001-of-00001.safetensors", "mine/adapter_model.safetensors"):
        save_file({"w": torch.ones(100)}, folder / name)
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"w": torch.ones(100)}, folder / "optimizer.pt")
    torch.save({"w": torch.ones(100)}, folder / "scheduler.pt", _use_new_zipfile_serialization=False)
    torch.save({"w": torch.ones(100)}, folder / "rng_state.pth")
    (folder / "training_args.bin").write_bytes(b"never read")
    return folder


def test_a_good_checkpoint_has_no_reason(checkpoint: Path) -> None:
    assert check_structure(checkpoint) == []


def test_a_missing_folder_and_a_file_say_so(tmp_path: Path) -> None:
    assert check_structure(tmp_path / "checkpoint-9") == [f"{tmp_path / 'checkpoint-9'} does not exist"]
    (tmp_path / "checkpoint-8").write_text("")
    assert check_structure(tmp_path / "checkpoint-8") == [f"{tmp_path / 'checkpoint-8'} is not a directory"]


def test_a_missing_trainer_state_is_named(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").unlink()
    assert check_structure(checkpoint) == ["trainer_state.json is missing"]


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    (checkpoint / "model-00001-of-00001.safetensors").unlink()
    assert check_structure(checkpoint) == [
        "model.safetensors.index.json names model-00001-of-00001.safetensors, which is missing"
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("trainer_state.json", "is not valid JSON"),
        ("progress.json", "is not valid JSON"),
        ("mine/adapter_config.json", "is not valid JSON"),
        ("model.safetensors.index.json", "is not an index"),
        ("model-00001-of-00001.safetensors", "is damaged"),
        ("mine/adapter_model.safetensors", "is damaged"),
        ("optimizer.pt", "is damaged"),
        ("rng_state.pth", "is damaged"),
    ],
)
@pytest.mark.parametrize("keep", [0, -1])
def test_a_cut_off_file_is_named(checkpoint: Path, name: str, why: str, keep: int) -> None:
    data = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(data[:keep])
    (reason,) = check_structure(checkpoint)
    assert reason.startswith(f"{name} {why}")
