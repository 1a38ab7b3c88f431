"""Models that not every way of sharding can take as they are: statistics of batches, adapters on halves, early optimizers."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, distributed as dist, nn

from mainspring import Trainer
from tests.distributed.fsdp_probes import VERSIONS, Probe, each, raised
from tests.distributed.fsdp_runs import arguments, logged, model, trainer
from tests.helpers import data


class Normalising(nn.Module):
    """Keeps statistics of the batches that it was trained on, and evaluates with them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One number for each row of `x` (batch, 4)."""
        prediction = self.head(self.norm(x)).squeeze(-1)
        return {"loss": nn.functional.mse_loss(prediction, labels), "logits": prediction}


def statistics(out: Path, options: dict[str, Any]) -> Any:
    """The loss of the sharded model, and of the one that it was saved as; of its statistics, those that differed before."""

    def build(own: nn.Module, **ways: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it does not say what its layers are
            return Trainer(own, arguments(out, **ways), train_dataset=points, eval_dataset=points)

    points = data.Items(data.points(32))
    run = build(Normalising(), **options)
    run.train()
    means = run._engine.every(run.model.norm.running_mean.tolist())
    here = run.evaluate()["eval_loss"]
    run.save_model(str(out))
    dist.barrier()
    opened = Normalising()
    opened.load_state_dict(load_file(out / "model.safetensors"))
    return {"differed": means[0] != means[1], "here": here, "there": build(opened).evaluate()["eval_loss"]}


def half_frozen(out: Path, options: dict[str, Any]) -> Any:
    """Losses where a part of the model is frozen in bf16, and the rest trained in fp32; what is saved of both."""
    own = model().bfloat16()
    own.transformer.h[0].mlp.requires_grad_(False)
    run = trainer(out, own, bf16=True, **options)
    run.train()
    return logged(run)


def half_frozen_without_bf16(out: Path, options: dict[str, Any]) -> Any:
    """What is said where nothing tells what to compute in."""
    own = model()
    own.transformer.h[0].mlp.bfloat16().requires_grad_(False)
    return raised(lambda: trainer(out, own, **options).train())


def half_adapters(out: Path, options: dict[str, Any]) -> Any:
    """Losses of adapters in fp32 on a model in bf16, and of a run that goes on from the checkpoint."""
    import peft

    def build() -> Any:
        torch.manual_seed(3)
        config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        return peft.get_peft_model(model().bfloat16(), config)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frozen parameters beside others take more memory in the first version
        run = trainer(out, build(), bf16=True, save_strategy="steps", save_steps=2, **options)
        run.train()
        again = trainer(out, build(), bf16=True, **options)
        again.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    return [logged(run), logged(again)]


def early_optimizers(out: Path, options: dict[str, Any]) -> Any:
    """Losses with an optimizer that was created before training, or what is said of it; and of one after an evaluation."""
    early = trainer(out, **options)
    early.create_optimizer()
    said = raised(early.train)
    late = trainer(out, **options)
    late.evaluate()
    late.create_optimizer()
    late.train()
    return {"said": said, "early": logged(early), "late": logged(late)}


MODELS: Mapping[str, Probe] = {
    "statistics": each(VERSIONS, statistics),
    "half_frozen": each(VERSIONS, half_frozen),
    "half_frozen_without_bf16": each(VERSIONS, half_frozen_without_bf16),
    "early_optimizers": each(VERSIONS, early_optimizers),
}
"""What two processes are asked of them, by name."""

if importlib.util.find_spec("peft"):
    MODELS = {**MODELS, "half_adapters": each(VERSIONS, half_adapters)}
