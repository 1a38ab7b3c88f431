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
        (folder / name).write_text('{"global_step": 2}')
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


def test_shards_without_what_joins_them_are_named(checkpoint: Path) -> None:
    """Torch writes it last."""
    (checkpoint / "optimizer_0").mkdir()
    (checkpoint / "optimizer_0" / "__0_0.distcp").write_bytes(b"")
    assert check_structure(checkpoint) == ["optimizer_0 holds shards, but no .metadata: it was not written to its end"]
    (checkpoint / "optimizer_0" / ".metadata").write_bytes(b"")
    assert check_structure(checkpoint) == []


@pytest.mark.parametrize("files", [(), ("optimizer.pt",), ("optimizer.bin", "training_args.bin")])
def test_a_folder_without_weights_is_named(tmp_path: Path, files: tuple[str, ...]) -> None:
    (tmp_path / "trainer_state.json").write_text('{"global_step": 2}')
    for name in files:
        torch.save({}, tmp_path / name)
    assert check_structure(tmp_path) == ["it holds no weights"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model_fsdp_0/state.pt", "global_step2/states.pt"])
def test_weights_have_many_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "trainer_state.json").write_text('{"global_step": 2}')
    (tmp_path / name).parent.mkdir(exist_ok=True)
    torch.save({}, tmp_path / name)
    assert check_structure(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1]", "is not a JSON object, but a list"),
        ("{}", "has no global_step"),
        ('{"global_step": "2"}', "has no global_step"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_state_of_another_kind_is_named(checkpoint: Path, text: str, why: str) -> None:
    (checkpoint / "trainer_state.json").write_text(text)
    (reason,) = check_structure(checkpoint)
    assert reason.startswith(f"trainer_state.json {why}")


@pytest.mark.parametrize("text", ['{"weight_map": {"w": 5}}', '{"weight_map": 5}', "[" * 100_000])
def test_an_index_of_another_kind_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(text)
    (reason,) = check_structure(checkpoint)
    assert reason.startswith("model.safetensors.index.json is not an index")


def test_a_changed_byte_in_a_small_record_is_named(checkpoint: Path) -> None:
    path = checkpoint / "rng_state.pth"
    data = path.read_bytes()
    for part in (b"X\x01\x00\x00\x00w", torch.ones(100).numpy().tobytes()):  # the pickle, and a tensor
        assert part in data
        path.write_bytes(data.replace(part, part[:-1] + b"!"))
        (reason,) = check_structure(checkpoint)
        assert reason.startswith("rng_state.pth is damaged: Bad CRC-32")


def test_files_that_torch_wrote_without_checksums_are_accepted(checkpoint: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(100)}, checkpoint / "optimizer.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert check_structure(checkpoint) == []


def test_large_tensors_are_not_read(checkpoint: Path) -> None:
    tensor = torch.ones(1 << 19)
    torch.save({"w": tensor}, checkpoint / "optimizer.pt")
    path = checkpoint / "optimizer.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert check_structure(checkpoint) == []


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
