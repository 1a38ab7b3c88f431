from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mainspring.checkpoint import CheckpointError, Contents, load_weights, reseal, save_model, staged
from tests.helpers import models
from tests.helpers.checkpoints import facts, write_checkpoint, write_foreign


def test_with_a_manifest_what_it_lists_counts(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "callbacks.pt").write_bytes(b"")
    (folder / "mine").mkdir()
    (folder / "mine" / "notes").write_text("")
    contents = Contents.of(folder)
    assert contents.file("scaler.pt") == folder / "scaler.pt"
    assert contents.file("callbacks.pt") is None
    assert contents.folders() == ["adapter"]
    assert contents.below("adapter").file("adapter_config.json") == folder / "adapter" / "adapter_config.json"
    assert contents.below("mine").file("notes") is None
    reseal(folder)
    assert Contents.of(folder).file("callbacks.pt") is not None
    assert Contents.of(folder).folders() == ["adapter", "mine"]


def test_without_one_what_is_there_counts(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path)
    (folder / "callbacks.pt").write_bytes(b"")
    contents = Contents.of(folder)
    assert contents.file("callbacks.pt") == folder / "callbacks.pt"
    assert contents.file("nothing") is None
    assert contents.folders() == ["adapter"]
    assert contents.below("adapter").file("adapter_config.json") is not None
    assert Contents.of(tmp_path / "nowhere").folders() == []


# ---- weights ----


def saved(folder: Path, model: nn.Module) -> Path:
    with staged(folder, facts()) as stage:
        save_model(model, stage)
        (stage / "trainer_state.json").write_text("{}")
    return folder


def test_a_file_that_is_not_listed_is_no_weights(tmp_path: Path) -> None:
    """Listed shards; a whole file that somebody added would be preferred."""
    model, folder = nn.Linear(2, 2), tmp_path / "checkpoint-1"
    with staged(folder, facts()) as stage:
        for name, tensor in model.state_dict().items():
            save_file({name: tensor}, stage / f"model-{name}.safetensors")
        weight_map = {name: f"model-{name}.safetensors" for name in model.state_dict()}
        (stage / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    save_model(nn.Linear(2, 2), folder)
    loaded = nn.Linear(2, 2)
    load_weights(loaded, folder)
    assert torch.equal(loaded.weight, model.weight)


def test_a_shard_that_is_not_listed_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    with staged(folder, facts()) as stage:
        index = {"weight_map": {"weight": "a.safetensors", "bias": "a.safetensors"}}
        (stage / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(nn.Linear(2, 2).state_dict(), folder / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"names a\.safetensors, which is missing"):
        load_weights(nn.Linear(2, 2), folder)


def test_where_only_others_put_weights_that_is_said(tmp_path: Path) -> None:
    with staged(tmp_path / "checkpoint-1", facts()) as stage:
        (stage / "trainer_state.json").write_text("{}")
    save_model(nn.Linear(2, 2), tmp_path / "checkpoint-1")
    with pytest.raises(CheckpointError, match=r"that its manifest\.json lists \(model\.safetensors was put there"):
        load_weights(nn.Linear(2, 2), tmp_path / "checkpoint-1")


# ---- adapters ----


def adapted(seed: int = 0) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    return get_peft_model(models.tiny_gpt2(), config)


def adapters(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora" in name}


def test_an_adapter_that_is_not_listed_is_not_added(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoint-1", adapted())
    adapted(1).save_pretrained(folder / "stranger")
    model = adapted(2)
    assert load_weights(model, folder).messages() == []
    assert list(model.peft_config) == ["default"]


def test_a_listed_adapter_is_added(tmp_path: Path) -> None:
    with staged(tmp_path / "checkpoint-1", facts()) as stage:
        save_model(adapted(), stage)
        adapted(1).save_pretrained(stage / "second")
    model = adapted(2)
    load_weights(model, tmp_path / "checkpoint-1")
    assert sorted(model.peft_config) == ["default", "second"]


def test_an_unlisted_file_that_peft_would_prefer_is_refused(tmp_path: Path) -> None:
    with staged(tmp_path / "checkpoint-1", facts()) as stage:
        model = adapted()
        model.save_pretrained(stage, safe_serialization=True)
        torch.save(adapters(model), stage / "adapter_model.bin")
        (stage / "adapter_model.safetensors").unlink()
    adapted(1).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "adapter_model.safetensors", tmp_path / "checkpoint-1")
    model = adapted(2)
    before = adapters(model)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is not one of the checkpoint's files"):
        load_weights(model, tmp_path / "checkpoint-1")
    assert all(torch.equal(before[name], tensor) for name, tensor in adapters(model).items())


@pytest.mark.parametrize("module", ["os", "a.b", ["os"]])
def test_a_configuration_that_names_a_module_to_import_is_refused(tmp_path: Path, module: Any) -> None:
    with staged(tmp_path / "checkpoint-1", facts()) as stage:
        save_model(adapted(), stage)
        adapted(1).save_pretrained(stage / "second")
        file = stage / "second" / "adapter_config.json"
        file.write_text(
            json.dumps({**json.loads(file.read_text()), "megatron_core": module, "megatron_config": {"a": 1}})
        )
    with pytest.raises(CheckpointError, match=r"adapter_config\.json was refused: its megatron_core"):
        load_weights(adapted(2), tmp_path / "checkpoint-1")


def test_a_new_adapter_needs_a_configuration_of_the_checkpoint(tmp_path: Path) -> None:
    with staged(tmp_path / "checkpoint-1", facts()) as stage:
        save_model(adapted(), stage)
        adapted(1).save_pretrained(stage / "second")
        config = (stage / "second" / "adapter_config.json").read_text()
        (stage / "second" / "adapter_config.json").unlink()
    (tmp_path / "checkpoint-1" / "second" / "adapter_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json of its own"):
        load_weights(adapted(2), tmp_path / "checkpoint-1")
