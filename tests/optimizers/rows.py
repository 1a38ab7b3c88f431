"""Every optimizer by name: what it is trained with in these tests, and which of them run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mainspring import Trainer, TrainingArguments
from mainspring.names import OPTIMIZER_NAMES, OPTIMIZER_PACKAGES
from tests.helpers import data, models

ELSEWHERE = {
    "adamw_torch_xla": "pip install torch_xla",
    "adamw_torch_npu_fused": "pip install torch_npu",
    "adamw_apex_fused": r"pip install git\+https://github.com/NVIDIA/apex",
    "galore_adamw_8bit": "there is none; use 'galore_adamw'",
    "galore_adamw_8bit_layerwise": "there is none; use 'galore_adamw_layerwise'",
    "adalomo": "there is no such device; use 'lomo'",
}
"""Optimizers of other devices, with what the error says to do about it."""

HERE = tuple(name for name in OPTIMIZER_NAMES if name not in ELSEWHERE)
"""Optimizers that run on a CPU."""

MODULES = {
    "torchao": "torchao",
    "bitsandbytes": "bitsandbytes",
    "galore-torch transformers": "galore_torch",
    "apollo-torch transformers": "apollo_torch",
    "lomo-optim transformers": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedulefree": "schedulefree",
    "torch-optimi": "optimi",
}


@dataclass(frozen=True)
class Row:
    """How a name is trained here.

    Attributes:
        rate: A learning rate that suits it on this problem.
        options: What it needs beside it.
        state: A number format that some of its states must have.
    """

    rate: float = 0.02
    options: dict[str, Any] = field(default_factory=dict)
    state: torch.dtype | None = None


LOW_RANK = {"optim_target_modules": ["attn", "mlp"]}
ROWS: dict[str, Row] = {
    "adagrad": Row(0.1),
    "sgd": Row(0.5, {"optim_args": "momentum=0.9"}),
    "lomo": Row(0.5),
    "rmsprop": Row(0.005),
    "galore_adamw": Row(0.02, {**LOW_RANK, "optim_args": "rank=4, update_proj_gap=3, scale=2"}),
    "galore_adafactor": Row(0.02, {**LOW_RANK, "optim_args": "rank=4, update_proj_gap=3, scale=2"}),
    "apollo_adamw": Row(0.02, {**LOW_RANK, "optim_args": "rank=4, update_proj_gap=3"}),
    "adamw_anyprecision": Row(
        0.02, {"optim_args": "use_kahan_summation=True, variance_dtype=bfloat16"}, state=torch.bfloat16
    ),
    "galore_adamw_8bit": Row(options=LOW_RANK),
    "adamw_torch_4bit": Row(state=torch.uint8),
    "adamw_torch_8bit": Row(state=torch.uint8),
    "schedule_free_sgd": Row(2.0),
    "schedule_free_radam": Row(0.3),
    "grokadamw": Row(0.01),
}
for _name in HERE:
    if OPTIMIZER_PACKAGES.get(_name) == "bitsandbytes":
        _rate = 0.005 if "rmsprop" in _name or "lion" in _name else 0.02
        ROWS[_name] = Row(_rate, state=torch.uint8 if "8bit" in _name else torch.float32)


def is_installed(name: str) -> bool:
    """Whether the package of an optimizer is here."""
    package = OPTIMIZER_PACKAGES.get(name)
    return package is None or (package in MODULES and find_spec(MODULES[package]) is not None)


def row_of(name: str) -> Row:
    """How a name is trained; a layerwise one as its plain one."""
    return ROWS.get(name.removesuffix("_layerwise"), Row())


def tiny_llama() -> Any:
    """A language model of linear layers, large enough that quantised optimizers quantise the states of some."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=models.POSITIONS,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config)


def counting(count: int, seed: int = 0) -> data.Items:
    """Texts that count up from a random token: something to be learnt in a few updates."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count):
        length, start = torch.randint(4, 9, (2,), generator=generator).tolist()
        tokens = torch.arange(start, start + length)
        items.append({"input_ids": tokens, "labels": tokens.clone()})
    return data.Items(items)


def trainer(folder: Path, name: str, **changes: Any) -> Trainer:
    """A small language model with dropout, 12 updates; `changes` are options, `model` and what `Trainer` takes."""
    row = row_of(name)
    model = changes.pop("model", None)
    passed = {key: changes.pop(key) for key in ("optimizers", "optimizer_cls_and_kwargs") if key in changes}
    options = {
        "optim": name,
        "learning_rate": row.rate,
        "weight_decay": 0.01,
        "lr_scheduler_type": "constant" if name.startswith("schedule_free") else "linear",
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "logging_steps": 1,
        "save_steps": 5,
        "use_cpu": True,
        "disable_tqdm": True,
        **row.options,
        **changes,
    }
    torch.manual_seed(3)
    return Trainer(
        tiny_llama() if model is None else model,
        TrainingArguments(str(folder), **options),
        data_collator=data.collate_text,
        train_dataset=counting(24),
        eval_dataset=counting(24),
        **passed,
    )
