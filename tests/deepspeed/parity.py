"""The reference and this library on the same configuration, in launches of their own: each keeps state in its process."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.deepspeed.runs import ADAMW, DECAYS, SAVES, config, logged, model, options_of
from tests.helpers import data
from tests.helpers.sides import Side

LEFT = dict.fromkeys(
    ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"
)
"""What the reference fills in only where it is asked to."""


def _config(stage: int, **sections: Any) -> dict[str, Any]:
    return config(stage, **LEFT, **sections)


PARITY: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zero1": (_config(1), {}),
    "zero2": (_config(2), {}),
    "zero3": (_config(3), {}),
    "zero2_bf16": (_config(2, bf16={"enabled": "auto"}), {"bf16": True}),
    "zero3_bf16": (_config(3, bf16={"enabled": "auto"}), {"bf16": True}),
    "theirs": (_config(2, optimizer=ADAMW, scheduler=DECAYS), {}),
    "their_optimizer": (_config(2, optimizer=ADAMW), {}),
    "their_schedule": (_config(2, scheduler=DECAYS), {}),
    "accumulates": (_config(2), {"gradient_accumulation_steps": 2}),
    "unclipped": (_config(2), {"max_grad_norm": 0.0}),
}
"""Configurations, and options beside them."""


def one_side(side: Side, out: Path, name: str) -> dict[str, Any]:
    """What one library logs of a run."""
    settings, options = PARITY[name]
    given = options_of(**options, **SAVES)
    arguments = side.api.TrainingArguments(str(out), deepspeed=copy.deepcopy(settings), **given, **side.own_options)
    run = side.api.Trainer(
        model(),
        arguments,
        train_dataset=data.Items(data.ragged_text(40)),
        eval_dataset=data.Items(data.ragged_text(11, 9)),
        data_collator=data.collate_text,
    )
    run.train()
    keys = ("loss", "grad_norm", "learning_rate")
    found: dict[str, Any] = {key: logged(run, key) for key in keys}
    found["eval_loss"] = run.evaluate()["eval_loss"]
    found["files"] = sorted(path.name for path in (out / "checkpoint-2").iterdir())
    found["wrapper"] = type(run.model_wrapped).__name__
    return found
