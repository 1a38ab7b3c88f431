"""A run that is resumed from a crafted checkpoint executes nothing of it, wherever in the folder the pickle lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainingArguments
from mainspring.checkpoint import load_torch, load_weights, reseal
from mainspring.checkpoint.pickles import refuse, scan_folder
from mainspring.errors import CheckpointError
from mainspring.names import SCHEDULER_NAMES
from tests.checkpoint import payloads
from tests.helpers import data, models

Payload = Callable[[Path], bytes]
Form = Callable[[bytes, Path], None]

# Without these a run cannot go on: a crafted one is refused by name.
READ = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "progress.json")
# These are only looked at when there is nothing better, or not at all.
BESIDE = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "adapter_model.safetensors",
    "mine/adapter_model.bin",
    "scaler.pt",
    "optimizer.bin",
    "training_args.bin",
    "training_args.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.txt",
    "added.py",
    "latest",
    "global_step3/mp_rank_00_model_states.pt",
    "global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "pytorch_model_fsdp_0/.metadata",
    "pytorch_model_fsdp_0/__0_0.distcp",
)


def trainer(folder: Path, model: Any = None, **changes: Any) -> Trainer:
    options: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    torch.manual_seed(3)
    return Trainer(
        models.Regressor() if model is None else model,
        TrainingArguments(str(folder), **options),
        train_dataset=data.Items(data.points(16)),
        eval_dataset=data.Items(data.points(4, seed=1)),
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    trainer(folder, max_steps=2).train()
    return folder / "checkpoint-2"


def crafted(good: Path, tmp_path: Path, name: str, payload: Payload, form: Form) -> Path:
    """A copy of a good checkpoint with a live pickle in one place, which would make `tmp_path / "executed"`."""
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(good, folder)
    (folder / name).parent.mkdir(exist_ok=True)
    form(payload(tmp_path / "executed"), folder / name)
    reseal(folder)  # whoever can write the file can write a manifest that fits
    return folder


def resume(run: Trainer, folder: Path) -> str | None:
    """Resume, and return the words it was refused with, if it was."""
    try:
        run.train(resume_from_checkpoint=str(folder))
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("form", payloads.FORMS)
@pytest.mark.parametrize("name", READ)
def test_a_crafted_file_that_is_read_is_refused_by_name(good: Path, tmp_path: Path, name: str, form: Form) -> None:
    folder = crafted(good, tmp_path, name, payloads.by_global, form)
    refusal = resume(trainer(tmp_path / "out"), folder)
    assert not (tmp_path / "executed").exists()
    assert refusal is not None
    assert name in refusal


@pytest.mark.parametrize("form", [payloads.write_raw, payloads.write_zip])
@pytest.mark.parametrize("name", BESIDE)
def test_a_crafted_file_beside_them_executes_nothing(good: Path, tmp_path: Path, name: str, form: Form) -> None:
    folder = crafted(good, tmp_path, name, payloads.by_global, form)
    refusal = resume(trainer(tmp_path / "out"), folder)
    assert not (tmp_path / "executed").exists()
    assert refusal is None or name in refusal
    if name == "training_args.bin":  # the reference's own is a pickle of a class: that is no reason
        assert refusal is None


@pytest.mark.parametrize("payload", payloads.PAYLOADS)
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_no_kind_of_pickle_executes_anything(good: Path, tmp_path: Path, name: str, payload: Payload) -> None:
    folder = crafted(good, tmp_path, name, payload, payloads.write_zip)
    refusal = resume(trainer(tmp_path / "out"), folder)
    assert not (tmp_path / "executed").exists()
    assert refusal is not None
    assert name in refusal


@pytest.mark.parametrize("name", [*READ, *(name for name in BESIDE if not name.endswith(("args.bin", ".distcp")))])
def test_a_scan_of_the_folder_finds_it_anywhere(good: Path, tmp_path: Path, name: str) -> None:
    folder = crafted(good, tmp_path, name, payloads.by_system, payloads.write_raw)
    (reason,) = map(str, scan_folder(folder))
    assert reason.startswith(f"{name} was refused, and nothing in it was executed: it holds ")
    assert not (tmp_path / "executed").exists()


# ---- files that are read only where others are missing, or by some runs ----


@pytest.mark.parametrize("form", payloads.FORMS)
@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_weights_are_refused_by_name(good: Path, tmp_path: Path, sharded: bool, form: Form) -> None:
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    folder = crafted(good, tmp_path, name, payloads.by_global, form)
    (folder / "model.safetensors").unlink()
    if sharded:
        index = {"metadata": {}, "weight_map": {"hidden.weight": name}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    reseal(folder)
    refusal = resume(trainer(tmp_path / "out"), folder)
    assert not (tmp_path / "executed").exists()
    assert refusal is not None
    assert name in refusal


@pytest.mark.parametrize("form", payloads.FORMS)
def test_a_crafted_loss_scale_is_refused_by_name(good: Path, tmp_path: Path, form: Form) -> None:
    folder = crafted(good, tmp_path, "scaler.pt", payloads.by_global, form)
    run = trainer(tmp_path / "out")
    run._engine.scaler = torch.amp.GradScaler("cpu")
    refusal = resume(run, folder)
    assert not (tmp_path / "executed").exists()
    assert refusal is not None
    assert "scaler.pt" in refusal


@pytest.mark.parametrize("form", payloads.FORMS)
def test_crafted_adapters_are_refused_by_name(tmp_path: Path, form: Form) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted() -> Any:
        torch.manual_seed(0)
        return get_peft_model(models.tiny_gpt2(), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))

    text = data.Items(data.ragged_text(8))
    options = TrainingArguments(str(tmp_path / "out"), max_steps=1, save_steps=1, use_cpu=True, disable_tqdm=True)
    Trainer(adapted(), options, data_collator=data.collate_text, train_dataset=text).train()
    folder = tmp_path / "out" / "checkpoint-1"
    assert (folder / "adapter_model.safetensors").is_file()
    (folder / "adapter_model.safetensors").unlink()
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "progress.json").unlink()  # as if the reference had written it
    (folder / "training_args.json").unlink(missing_ok=True)
    form(payloads.by_global(tmp_path / "executed"), folder / "adapter_model.bin")
    refusal = resume(Trainer(adapted(), options, data_collator=data.collate_text, train_dataset=text), folder)
    assert not (tmp_path / "executed").exists()
    assert refusal is not None
    assert "adapter_model.bin" in refusal


def test_a_crafted_best_model_executes_nothing(good: Path, tmp_path: Path) -> None:
    folder = crafted(good, tmp_path, "pytorch_model.bin", payloads.by_global, payloads.write_zip)
    (folder / "model.safetensors").unlink()
    reseal(folder)
    run = trainer(tmp_path / "out")
    run.state.best_model_checkpoint = str(folder)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        run._load_best_model()
    assert not (tmp_path / "executed").exists()


# ---- and what is honest still loads ----


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"])
def test_every_optimizer_that_can_be_chosen_saves_what_can_be_loaded(tmp_path: Path, optim: str) -> None:
    trainer(tmp_path, max_steps=2, optim=optim).train()
    folder = tmp_path / "checkpoint-2"
    assert scan_folder(folder) == []
    assert load_torch(folder / "optimizer.pt")["param_groups"]
    resumed = trainer(tmp_path, max_steps=3, optim=optim)
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.state.global_step == 3


@pytest.mark.parametrize("schedule", sorted(SCHEDULER_NAMES))
def test_every_schedule_that_can_be_chosen_saves_what_can_be_loaded(tmp_path: Path, schedule: str) -> None:
    kwargs = {
        "cosine_with_min_lr": {"min_lr": 1e-5},
        "cosine_warmup_with_min_lr": {"min_lr": 1e-5},
        "warmup_stable_decay": {"num_decay_steps": 1},
    }
    options = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": kwargs.get(schedule, {})}
    if schedule in ("reduce_lr_on_plateau", "greedy"):
        options |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    trainer(tmp_path, max_steps=2, **options).train()
    assert scan_folder(tmp_path / "checkpoint-2") == []
    assert load_torch(tmp_path / "checkpoint-2" / "scheduler.pt")


def test_weights_that_were_pickled_honestly_load(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(good, folder)
    model = models.Regressor()
    load_weights(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    reseal(folder)
    refuse(folder / "pytorch_model.bin")
    assert load_weights(models.Regressor(), folder).messages() == []
