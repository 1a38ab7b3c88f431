"""The scripts that guides show for each optimizer, on a tiny model: they run, and train as the reference does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainingArguments
from mainspring.errors import OptionError
from tests.helpers import data, models
from tests.helpers.sides import REFERENCE, SUBJECT, Side
from tests.optimizers import rows

pytestmark = pytest.mark.parity

REGEXES = [r".*.attn.*", r".*.mlp.*"]
GALORE = {"optim_target_modules": REGEXES, "max_steps": 4, "per_device_train_batch_size": 2}
LAYERWISE = {"lr_scheduler_type": "constant"}
"""The reference logs another schedule, and its parameters do not get it."""

RECOMPUTED = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": True,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "learning_rate": 2e-3,
    "save_strategy": "no",
}
SCRIPTS: dict[str, dict[str, Any]] = {
    "galore, expressions": {**GALORE, "optim": "galore_adamw"},
    "galore, parts of names": {**GALORE, "optim": "galore_adamw", "optim_target_modules": ["attn", "mlp"]},
    "galore, whole names": {
        **GALORE,
        "optim": "galore_adamw",
        "optim_target_modules": [f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qk"],
    },
    "galore, its options": {
        **GALORE,
        "optim": "galore_adamw",
        "optim_args": "rank=64, update_proj_gap=100, scale=0.10",
    },
    "galore, adafactor": {**GALORE, "optim": "galore_adafactor", "optim_target_modules": ["attn", "mlp"]},
    "galore, layer by layer": {**GALORE, "optim": "galore_adamw_layerwise", **LAYERWISE},
    "apollo": {**GALORE, "optim": "apollo_adamw", "optim_target_modules": "all-linear"},
    "apollo, mini": {
        **GALORE,
        "optim": "apollo_adamw",
        "optim_args": "proj=random,rank=1,scale=128.0,scale_type=tensor,update_proj_gap=200",
    },
    "apollo, layer by layer": {**GALORE, "optim": "apollo_adamw_layerwise", **LAYERWISE},
    "lomo": {**RECOMPUTED, "optim": "lomo"},
    "grokadamw": {**RECOMPUTED, "optim": "grokadamw"},
    "schedule-free": {**RECOMPUTED, "max_steps": 8, "optim": "schedule_free_radam", "lr_scheduler_type": "constant"},
    "stable adamw": {**RECOMPUTED, "optim": "stable_adamw"},
}


@pytest.fixture(autouse=True)
def _without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """StableAdamW's package takes Triton's on a CPU too, where the reference then fails."""
    if find_spec("optimi") is not None:
        monkeypatch.setattr("optimi.utils.HAS_TRITON", False)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages, and about options of generations
        yield


def tiny_gemma() -> Any:
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=models.POSITIONS,
    )
    return GemmaForCausalLM(config)


def trained(side: Side, folder: Path, script: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses that were logged, and the weights in the end."""
    torch.manual_seed(3)
    trainer = side.api.Trainer(
        tiny_gemma(),
        side.arguments(folder, **SCRIPTS[script]),
        data_collator=data.collate_text,
        train_dataset=rows.counting(24),
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return losses, {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_trains_as_with_the_reference(tmp_path: Path, script: str) -> None:
    if not rows.is_installed(SCRIPTS[script]["optim"]):
        pytest.skip("package not here")
    losses, weights = trained(SUBJECT, tmp_path / "ours", script)
    their_losses, their_weights = trained(REFERENCE, tmp_path / "theirs", script)
    assert len(losses) == SCRIPTS[script]["max_steps"]
    assert losses == pytest.approx(their_losses, rel=1e-6)
    torch.manual_seed(3)
    start = tiny_gemma().state_dict()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, their_weights[name], rtol=1e-5, atol=1e-7)
    assert not any(torch.equal(tensor, start[name]) for name, tensor in weights.items() if "proj" in name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs_as_it_is_written(tmp_path: Path, script: str) -> None:
    """With our own defaults, and evaluated afterwards."""
    if not rows.is_installed(SCRIPTS[script]["optim"]):
        pytest.skip("package not here")
    args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **SCRIPTS[script])
    trainer = Trainer(
        tiny_gemma(),
        args,
        data_collator=data.collate_text,
        train_dataset=rows.counting(24),
        eval_dataset=rows.counting(4, seed=1),
    )
    assert trainer.train().global_step == SCRIPTS[script]["max_steps"]
    assert trainer.evaluate()["eval_loss"] < 5


def test_a_model_without_linear_layers_is_named_with_what_it_has(tmp_path: Path) -> None:
    """GPT-2's are of a kind of its own."""
    args = TrainingArguments(str(tmp_path), use_cpu=True, **SCRIPTS["galore, expressions"])
    with pytest.raises(OptionError, match="no linear layer of GPT2LMHeadModel matches; name some of: lm_head"):
        Trainer(models.tiny_gpt2(), args, data_collator=data.collate_text, train_dataset=rows.counting(4))
