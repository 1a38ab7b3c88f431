"""What every process of a launch does: write checkpoints with DeepSpeed, and what the weights were beside them.

    worker_export FOLDER

`FOLDER/<case>` is a checkpoint, `FOLDER/<case>.facts.pt` what is known of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed.ops
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import deepspeed
from mainspring import Trainer, TrainingArguments
from mainspring.checkpoint import SHARDED_MODEL_FOLDER
from mainspring.checkpoint.sharded import save_shards
from mainspring.checkpoint.zero import load_state_dict_from_zero_checkpoint

# It would be compiled, and gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

WORDS, WIDTH = 37, 6


class Tied(nn.Module):
    """A model with all that a checkpoint can hold: tied and frozen weights, buffers, sizes that do not divide by two."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.frozen = nn.Linear(WIDTH, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(5, WIDTH)
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("shift", torch.linspace(0, 1, 5))
        self.register_buffer("seen", torch.tensor(3))
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        self.frozen.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.norm(self.frozen(self.words(ids)))
        hidden = self.out(torch.tanh(hidden + self.shift.to(hidden.dtype)))
        logits: Tensor = self.head(hidden * self.scale)
        return nn.functional.cross_entropy(logits.float(), (ids * 7 + 3) % WORDS)


@dataclass(frozen=True)
class Case:
    """A checkpoint to write."""

    stage: int
    bf16: bool = False
    zero: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    without_frozen: bool = False
    universal: bool = False


_CPU = {"device": "cpu", "pin_memory": False}
CASES = {
    **{f"zero{stage}-{'bf16' if half else 'fp32'}": Case(stage, half) for stage in range(4) for half in (False, True)},
    "zero1-sums": Case(1, bf16=True, more={"data_types": {"grad_accum_dtype": "fp32"}}),
    "zero2-in-turn": Case(2, zero={"round_robin_gradients": True}),
    "zero3-many-groups": Case(3, zero={"sub_group_size": 40}),
    "zero2-offloaded": Case(2, zero={"offload_optimizer": _CPU}, more={"zero_force_ds_cpu_optimizer": False}),
    "zero3-offloaded": Case(
        3,
        bf16=True,
        zero={"offload_optimizer": _CPU, "offload_param": _CPU},
        more={"zero_force_ds_cpu_optimizer": False},
    ),
    "zero2-without-frozen": Case(2, without_frozen=True),
    "zero3-without-frozen": Case(3, without_frozen=True),
    "zero3-universal": Case(3, universal=True),
    "zero1-universal": Case(1, universal=True),
}


def main() -> None:
    """Write all of them."""
    folder = Path(sys.argv[1])
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for name, case in CASES.items():
        write(folder, name, case)
    through_the_trainer(folder)
    in_shards(folder / "shards")
    distributed.destroy_process_group()


def write(folder: Path, name: str, case: Case) -> None:
    """Train a few updates of one case, and save."""
    torch.manual_seed(0)
    model = Tied()
    engine = start(model, case)
    steps(engine)
    place = folder / name
    engine.save_checkpoint(str(place), exclude_frozen_parameters=case.without_frozen)
    masters, held = gathered(engine.module, case.stage)
    recovered = recover(place)
    load_state_dict_from_zero_checkpoint(engine.module, place)
    loaded = {name: value.detach().clone() for name, value in engine.module.state_dict().items()}
    if distributed.get_rank() == 0:
        torch.save(
            {
                "engine": type(engine).__name__,
                "stage": engine.zero_optimization_stage(),
                "world_size": distributed.get_world_size(),
                "masters": masters,
                "held": held,
                "recovered": recovered,
                "loaded": loaded,
            },
            folder / f"{name}.facts.pt",
        )
        if case.universal:
            convert(place)
    distributed.barrier()
    engine.destroy()


def start(model: nn.Module, case: Case) -> Any:
    """DeepSpeed's engine around a model, with two groups of parameters."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=0.05)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": case.stage, **case.zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "bf16": {"enabled": case.bf16},
        **case.more,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def steps(engine: Any) -> None:
    """Three updates of two micro-batches."""
    generator = torch.Generator().manual_seed(1 + distributed.get_rank())
    for _ in range(6):
        engine.backward(engine(torch.randint(WORDS, (4,), generator=generator)))
        engine.step()


def gathered(model: nn.Module, stage: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What DeepSpeed gathers: the weights that the optimizer steps, and those that the model computes with."""
    masters: dict[str, Tensor] = {}
    held = {}
    for name, parameter in model.named_parameters():
        if stage and parameter.requires_grad:
            masters[name] = safe_get_full_fp32_param(parameter).detach().cpu().clone()
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            held[name] = parameter.detach().cpu().clone()
    own = model.state_dict()
    held |= {name: own[name].detach().cpu().clone() for name, _ in model.named_buffers() if name in own}
    return masters, held


def recover(place: Path) -> Any:
    """What DeepSpeed's own function makes of the checkpoint; the reason where it fails."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if distributed.get_rank() != 0:
        return None
    try:
        found: Any = get_fp32_state_dict_from_zero_checkpoint(str(place))
    except Exception as error:  # noqa: BLE001 (stage 0 is not for it, among others)
        return repr(error)
    return {name: value.clone() for name, value in found.items()}


def convert(place: Path) -> None:
    """Make a universal checkpoint beside the one that was saved."""
    source = place / (place / "latest").read_text()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "MASTER", "RANK"))}
    done = subprocess.run(
        [*command, "--input_folder", str(source), "--output_folder", f"{source}_universal"],
        env=alone, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def through_the_trainer(folder: Path) -> None:
    """Runs of the Trainer with a transformers model whose head is tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = [{"input_ids": torch.arange(5) + i, "labels": torch.arange(5) + i} for i in range(32)]
    for stage, half in ((2, False), (3, False), (3, True)):
        name = f"trained-zero{stage}-{'bf16' if half else 'fp32'}"
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=True,
        )  # fmt: skip
        args = TrainingArguments(
            str(folder / name), max_steps=4, save_steps=4, per_device_train_batch_size=4, use_cpu=True, bf16=half,
            gradient_accumulation_steps=2, learning_rate=0.01, disable_tqdm=True, report_to="none",
            deepspeed={
                "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
                "bf16": {"enabled": half}, "steps_per_print": None,
            },
        )  # fmt: skip
        trainer = Trainer(LlamaForCausalLM(config), args, train_dataset=rows)
        trainer.train()
        masters, held = gathered(trainer.deepspeed.module, stage)
        facts = {"engine": type(trainer.model_wrapped).__name__, "world_size": trainer.args.world_size}
        facts |= {"stage": trainer.deepspeed.zero_optimization_stage(), "masters": masters, "held": held}
        if distributed.get_rank() == 0:
            torch.save(facts, folder / f"{name}.facts.pt")
        distributed.barrier()


def in_shards(folder: Path) -> None:
    """A model in shards, as FSDP has them: divided by rows, by columns, unevenly, or not at all."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    generator = torch.Generator().manual_seed(0)
    whole = {"rows": torch.randn(6, 4, generator=generator), "columns": torch.randn(3, 8, generator=generator)}
    whole |= {"uneven": torch.randn(7, 2, generator=generator), "alone": torch.randn(5, generator=generator)}
    held: dict[str, Tensor] = {
        name: distribute_tensor(whole[name], mesh, [Shard(1 if name == "columns" else 0)])
        for name in ("rows", "columns", "uneven")
    }
    save_shards(folder / SHARDED_MODEL_FOLDER, {"model": {**held, "alone": whole["alone"]}})
    if distributed.get_rank() == 0:
        torch.save(whole, folder.parent / "shards.whole.pt")


if __name__ == "__main__":
    main()
