"""A run reads its options and never writes them: what it works out from them is in the plan and in the state."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mainspring import Trainer, TrainingArguments
from tests.helpers import data, models
from tests.helpers.sides import forget_process_state

SMALL: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "num_train_epochs": 2,
    "save_strategy": "epoch",
}

OPTION_SETS: dict[str, dict[str, Any]] = {
    "shares of the run": {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "logging_steps": 0.25,
        "eval_steps": 0.25,
        "save_steps": 0.5,
        "warmup_steps": 0.3,
        "load_best_model_at_end": True,
        "save_total_limit": 1,
    },
    "by epoch": {
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "num_train_epochs": 1.5,
        "eval_delay": 1,
    },
    "left open": {"disable_tqdm": None, "report_to": None, "logging_steps": 2, "eval_strategy": "steps"},
    "accumulation": {
        "bf16": True,
        "gradient_accumulation_steps": 4,
        "max_steps": 3,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 1.5,
        "max_grad_norm": 0,
    },
    "best only": {
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "best",
        "metric_for_best_model": "loss",
        "save_only_model": False,
        "eval_on_start": True,
        "bf16_full_eval": True,
    },
    "recomputation": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "include_num_input_tokens_seen": True,
        "logging_first_step": True,
    },
    "a schedule that follows a metric": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 1},
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
    },
    "another optimizer": {
        "optim": "sgd",
        "optim_args": "momentum=0.5",
        "label_smoothing_factor": 0.1,
        "data_seed": 5,
        "train_sampling_strategy": "sequential",
        "dataloader_drop_last": True,
    },
    "loading": {
        "dataloader_num_workers": 1,
        "dataloader_prefetch_factor": 2,
        "dataloader_persistent_workers": True,
        "accelerator_config": {"non_blocking": True, "gradient_accumulation_kwargs": {"sync_each_batch": False}},
        "max_steps": 2,
        "num_train_epochs": -1,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_strategy": "no",
    },
    "what metrics get": {"label_names": ["labels"], "include_for_metrics": ["inputs"]},
    "as the reference": {"compat": "5", "eval_strategy": "epoch", "load_best_model_at_end": True, "save_steps": 7},
}


class Sealed(TrainingArguments):
    """Options that cannot be assigned once they are sealed, not even to be put back later."""

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("_sealed"):
            raise AssertionError(f"{name} is assigned during the run")
        super().__setattr__(name, value)


def run(args: Any, **resume: Any) -> Trainer:
    """Train, evaluate, predict and save."""
    forget_process_state()
    torch.manual_seed(0)
    trainer = Trainer(
        models.tiny_gpt2(),
        args,
        data_collator=data.collate_text,
        train_dataset=data.Items(data.ragged_text(20)),
        eval_dataset=data.Items(data.ragged_text(6, seed=1)),
        compute_metrics=lambda prediction: {"rows": len(prediction.predictions)},
    )
    trainer.train(**resume)
    trainer.evaluate()
    trainer.predict(data.Items(data.ragged_text(5, seed=2)))
    trainer.save_model()
    return trainer


def values(args: Any) -> dict[str, tuple[type, Any]]:
    """Every option with its type, `1` and `1.0` being different values."""
    return {
        field.name: (type(getattr(args, field.name)), getattr(args, field.name)) for field in dataclasses.fields(args)
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTION_SETS)
def test_a_run_leaves_the_options_as_they_were(name: str, tmp_path: Path) -> None:
    args = Sealed(str(tmp_path), **{**SMALL, **OPTION_SETS[name]})
    before, attributes = copy.deepcopy(args), set(vars(args))
    vars(args)["_sealed"] = True
    first = run(args)
    resumed = run(args, resume_from_checkpoint=True)
    assert first.state.global_step == resumed.state.global_step > 0
    assert first.args is resumed.args is args
    assert values(args) == values(before)
    assert args == before
    assert set(vars(args)) - attributes <= {"_sealed", "_found_place"}


@pytest.mark.filterwarnings("ignore")
def test_a_run_leaves_the_references_options_as_they_were(tmp_path: Path) -> None:
    options = {**SMALL, **OPTION_SETS["shares of the run"], "lr_scheduler_kwargs": {}, "bf16": True}
    forget_process_state()
    args = transformers.TrainingArguments(str(tmp_path), **options)
    before = copy.deepcopy(args)
    run(args)
    assert values(args) == values(before)
