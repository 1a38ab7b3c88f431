"""The runs that DeepSpeed must do as one process without it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.deepspeed.runs import ADAMW, DECAYS, EVALUATES, SAVES, config, optimizer


@dataclass(frozen=True)
class Case:
    """One run on two processes.

    Attributes:
        config: Its DeepSpeed configuration.
        options: Its other options.
        alone: Those of one process that does the same.
        tolerance: How far losses and gradient norms may be from that, relatively.
        resumes: Whether it saves, and a second run goes on from there.
    """

    config: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    alone: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 2e-5
    resumes: bool = False


HALF = 2e-2
"""Weights in half precision, against whole ones."""

SOURCES: Mapping[str, dict[str, Any]] = {
    "ours_ours": {},
    "theirs_ours": {"optimizer": ADAMW},
    "ours_theirs": {"scheduler": DECAYS},
    "theirs_theirs": {"optimizer": ADAMW, "scheduler": DECAYS},
}
"""Where optimizer and schedule come from."""

PRECISIONS: Mapping[str, dict[str, Any]] = {"fp32": {}, "bf16": {"bf16": True}}

MATRIX: Mapping[str, Case] = {
    f"stage{stage}_{precision}_{source}": Case(
        config(stage, **sections),
        {**options, **EVALUATES, **SAVES},
        tolerance=HALF if precision == "bf16" else 2e-5,
        resumes=True,
    )
    for stage in range(4)
    for precision, options in PRECISIONS.items()
    for source, sections in SOURCES.items()
}
"""Every stage in both precisions with optimizer and schedule from either side."""

ACCUMULATES = {"gradient_accumulation_steps": 2}

USES: Mapping[str, Mapping[str, Any]] = {
    "accumulates": ACCUMULATES,
    "clips": {"max_grad_norm": 0.1},
    "clips_accumulated": {"max_grad_norm": 0.1, **ACCUMULATES},
    "does_not_clip": {"max_grad_norm": 0.0},
    "smooths_labels": {"label_smoothing_factor": 0.2},
    "recomputes": {"gradient_checkpointing": True},
    "sgd": {"optim": "sgd"},
    "adagrad": {"optim": "adagrad"},
    "lr_groups": {"lr_groups": {r"wte|wpe": {"lr": 1e-3}}},
    "cosine": {"lr_scheduler_type": "cosine"},
    "plateau": {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "factor": 0.1, "threshold": 0.9},
        "eval_strategy": "steps",
        "eval_steps": 1,
    },
    "greedy": {"lr_scheduler_type": "greedy", "eval_strategy": "steps", "eval_steps": 1},
}
"""What options ask for, by name."""

CASES: Mapping[str, Case] = {
    f"stage{stage}_{name}": Case(config(stage), options, options)
    for stage in range(4)
    for name, options in USES.items()
}
"""With everything ours."""

WHOLE_NORMS = {"max_grad_norm": 0.0}
MADE: Mapping[str, Case] = {
    f"stage{stage}_made_{name}": Case(
        config(stage, optimizer=section, **sections),
        {**WHOLE_NORMS, **SAVES},
        {**WHOLE_NORMS, **(alone or {})},
        resumes=True,
    )
    for stage in range(4)
    for name, section, sections, alone in (
        ("adam", {**ADAMW, "type": "Adam"}, {}, {}),
        ("adagrad", optimizer("Adagrad"), {}, {"optim": "adagrad"}),
        ("muon", optimizer("Muon"), {"zero_optimization": {"reduce_scatter": False}}, None),
    )
}
"""Optimizers that DeepSpeed makes."""

SCHEDULES: Mapping[str, Case] = {
    f"schedule_{name}": Case(
        config(2, scheduler={"type": name.partition("_")[0], "params": params}),
        SAVES,
        resumes=True,
    )
    for name, params in {
        "WarmupLR": {
            "warmup_min_lr": "auto",
            "warmup_max_lr": "auto",
            "warmup_num_steps": "auto",
            "warmup_type": "linear",
        },
        "WarmupLR_log": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
        "WarmupDecayLR": DECAYS["params"],
        "WarmupCosineLR": {"total_num_steps": "auto", "warmup_num_steps": "auto"},
        "OneCycle": {"cycle_min_lr": 1e-3, "cycle_max_lr": 1e-2, "cycle_first_step_size": 2},
        "LRRangeTest": {"lr_range_test_min_lr": 1e-3, "lr_range_test_step_size": 2},
    }.items()
}
"""Schedules that DeepSpeed moves."""

KEPT: Mapping[str, Case] = {
    "stage3_keeps_whole_weights": Case(
        config(3, zero_optimization={"stage3_gather_16bit_weights_on_model_save": True}), SAVES, resumes=True
    )
}
"""Checkpoints with whole weights beside the pieces."""

ALL: Mapping[str, Case] = {**MATRIX, **CASES, **MADE, **SCHEDULES, **KEPT}
"""All of them."""
