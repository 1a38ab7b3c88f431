"""Small checkpoints with every kind of file that a real one holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mainspring.checkpoint import Facts, save_model, save_torch, staged
from mainspring.seeding import capture_rng
from mainspring.state import Progress, TrainerState
from tests.helpers import models

RUN = "run-1"

# What `write_files` makes.
PLAIN_FILES = (
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "model.safetensors",
    "optimizer.pt",
    "progress.json",
    "rng_state.pth",
    "scaler.pt",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.json",
)
PRETRAINED_FILES = tuple(
    sorted({*PLAIN_FILES, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})
)


def facts(step: int = 20, run_id: str = RUN, **others: Any) -> Facts:
    """What a checkpoint of `step` was written for."""
    return Facts(run_id, step, samples=8 * step, **others)


def write_files(folder: Path, step: int = 20, model: nn.Module | None = None, tokenizer: Any = None) -> None:
    """Write what a run writes at `step` into `folder`, and an adapter that a subclass might put there."""
    model = models.Regressor() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    save_model(model, folder, processing_class=tokenizer)
    save_torch(optimizer.state_dict(), folder / "optimizer.pt")
    save_torch(schedule.state_dict(), folder / "scheduler.pt")
    save_torch({"scale": 1.0, "_growth_tracker": 0}, folder / "scaler.pt")
    save_torch(capture_rng(distributed=False), folder / "rng_state.pth")
    save_model(nn.Linear(2, 1), folder / "adapter")
    (folder / "adapter" / "model.safetensors").rename(folder / "adapter" / "adapter_model.safetensors")
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "training_args.json").write_text(json.dumps({"learning_rate": 1e-3}))
    TrainerState(global_step=step).save_to_json(folder / "trainer_state.json")
    Progress(samples=8 * step).to_json(folder / "progress.json")


def write_checkpoint(root: Path, step: int = 20, run_id: str = RUN, **others: Any) -> Path:
    """Write a valid `checkpoint-<step>` below `root`, and return it."""
    folder = root / f"checkpoint-{step}"
    with staged(folder, facts(step, run_id, **others)) as stage:
        write_files(stage, step)
    return folder


def write_small(root: Path, step: int = 20, run_id: str = RUN, name: str | None = None, **others: Any) -> Path:
    """Write a valid checkpoint of two small files; for tests that care for its manifest alone."""
    folder = root / (name or f"checkpoint-{step}")
    with staged(folder, facts(step, run_id, **others)) as stage:
        TrainerState(global_step=step).save_to_json(stage / "trainer_state.json")
        (stage / "weights.bin").write_bytes(bytes(range(256)))
    return folder


def write_foreign(root: Path, step: int = 20) -> Path:
    """Write a checkpoint as the reference lays it out: without a manifest, and without files of ours."""
    folder = root / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    write_files(folder, step)
    for name in ("progress.json", "training_args.json"):
        (folder / name).unlink()
    return folder


def flip(path: Path, position: int) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden entries included."""
    return sorted(path.name for path in folder.iterdir())
