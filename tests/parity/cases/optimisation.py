"""The numbers of an update: accumulation, loss, optimizer, schedule, precision, length of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.helpers.sides import Side
from tests.parity.harness import Build, Case
from tests.parity.tasks import (
    EVALUATES,
    LM,
    accuracy,
    classifier,
    language_model,
    regression,
    token_loss,
    with_model,
    with_own_optimizer,
)


def accumulation() -> list[Case]:
    """Updates of several micro-batches with unlike numbers of labels."""
    three = {**LM, "gradient_accumulation_steps": 3}
    one = {"gradient_accumulation_steps": 1}
    return [
        Case("accumulation_uneven_tokens", language_model(), three, one),
        Case("accumulation_dropout", language_model(0.1), three, one),
        Case("accumulation_classifier_dropout", classifier(0.1), {"gradient_accumulation_steps": 4}, one),
        Case("accumulation_plain_module", regression(), {"gradient_accumulation_steps": 4}, one),
        Case("accumulation_more_than_an_epoch", regression(), {"gradient_accumulation_steps": 9}, one),
        Case("custom_loss", language_model(compute_loss_func=token_loss), {**three, "max_grad_norm": 0}, one),
        Case("smoothing_lm", language_model(), {**three, "label_smoothing_factor": 0.2}, {"label_smoothing_factor": 0}),
        Case(
            "smoothing_classifier_dropout",
            classifier(0.1),
            {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2, **EVALUATES},
            {"label_smoothing_factor": 0},
        ),
    ]


def schedules() -> list[Case]:
    """Each schedule that both generations have, with warm-up where it takes one."""
    shapes: Mapping[str, dict[str, Any]] = {
        "linear": {"warmup_steps": 2},
        "cosine": {"warmup_steps": 2, "lr_scheduler_kwargs": {"num_cycles": 0.75}},
        "cosine_with_restarts": {"warmup_steps": 2, "lr_scheduler_kwargs": {"num_cycles": 3}},
        "polynomial": {"warmup_steps": 2, "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 1e-4}},
        "constant": {"warmup_steps": 2},
        "constant_with_warmup": {"warmup_steps": 4},
        "inverse_sqrt": {"warmup_steps": 2, "lr_scheduler_kwargs": {"timescale": 5}},
    }
    rows = [
        Case(
            f"schedule_{name}",
            regression(),
            {"lr_scheduler_type": name, "num_train_epochs": 2, **options},
            {"lr_scheduler_type": "linear" if name != "linear" else "cosine", "lr_scheduler_kwargs": None},
        )
        for name, options in shapes.items()
    ]
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}}
    rows.append(
        Case(
            "schedule_reduce_lr_on_plateau",
            regression(),
            {**plateau, "learning_rate": 0.3, "num_train_epochs": 3, **EVALUATES},
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None},
        )
    )
    return rows


def duration() -> list[Case]:
    """How long a run is, and how its learning rate begins."""
    return [
        Case("warmup_steps", regression(), {"warmup_steps": 5}, {"warmup_steps": 0}),
        Case("warmup_share", regression(), {"warmup_steps": 0.29}, {"warmup_steps": 0}),
        Case(
            "warmup_share_old_spelling",
            regression(),
            {"warmup_steps": 0.29},
            {"warmup_steps": 0},
            spelled={"warmup_ratio": 0.29},
        ),
        Case(
            "fractional_epochs",
            language_model(),
            {**LM, "num_train_epochs": 2.5, "gradient_accumulation_steps": 3},
            {"num_train_epochs": 3},
        ),
        Case("max_steps_over_epochs", regression(0.1), {"max_steps": 14}, {"max_steps": 15}),
        Case(
            "drop_last",
            regression(),
            {"dataloader_drop_last": True, "num_train_epochs": 2},
            {"dataloader_drop_last": False},
        ),
        Case(
            "old_spellings",
            classifier(compute_metrics=accuracy),
            {"eval_strategy": "epoch", "save_strategy": "epoch", "save_only_model": True},
            {"eval_strategy": "no"},
            spelled={
                "evaluation_strategy": "epoch",
                "save_strategy": "epoch",
                "save_only_model": True,
                "no_cuda": True,
            },
        ),
    ]


def optimisation() -> list[Case]:
    """Optimizers, decay and clipping."""
    sgd = {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=True, weight_decay=0.01"}
    adam = {"optim": "adamw_torch", "optim_args": None}
    momentum = {"optim": "rmsprop", "optim_args": "momentum=0.5,alpha=0.8,centered=True"}
    betas = {"adam_beta1": 0.7, "adam_beta2": 0.95, "adam_epsilon": 1e-4}
    return [
        Case("optim_adamw_torch", language_model(), {**LM, "optim": "adamw_torch", **betas}, {"adam_beta1": 0.9}),
        Case(
            "optim_adamw_torch_fused",
            language_model(),
            {**LM, "optim": "adamw_torch_fused", **betas},
            {"adam_beta2": 0.9},
        ),
        Case("optim_sgd_with_args", language_model(), {**LM, **sgd}, adam),
        Case("optim_adafactor", language_model(), {**LM, "optim": "adafactor"}, adam),
        Case("optim_adagrad", language_model(), {**LM, "optim": "adagrad", "optim_args": "lr_decay=0.01"}, adam),
        Case("optim_rmsprop_with_args", language_model(), {**LM, **momentum}, adam),
        Case("decay_lm", language_model(), {**LM, "weight_decay": 0.5}, {"weight_decay": 0}),
        Case("decay_classifier", classifier(), {"weight_decay": 0.5}, {"weight_decay": 0}),
        Case("decay_plain_module", regression(), {"weight_decay": 0.5}, {"weight_decay": 0}),
        Case("clipping_off", language_model(), {**LM, "optim": "sgd", "max_grad_norm": 0}, {"max_grad_norm": 0.1}),
        Case("clipping_tight", language_model(), {**LM, "optim": "sgd", "max_grad_norm": 0.05}, {"max_grad_norm": 1.0}),
        Case(
            "frozen_parameters", with_model(classifier(), _freeze_encoder), {"weight_decay": 0.1}, {"weight_decay": 0}
        ),
        Case("own_optimizer_and_schedule", with_own_optimizer(), {"learning_rate": 1.0}, {"num_train_epochs": 2}),
    ]


def _freeze_encoder(model: Any) -> Any:
    model.bert.requires_grad_(False)
    return model


def precision() -> list[Case]:
    """bfloat16 autocast, compilation, and recomputation of activations."""
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return [
        Case("bf16_lm", language_model(), {**LM, "gradient_accumulation_steps": 3, "bf16": True}, {"bf16": False}),
        Case(
            "compiled_lm",
            language_model(),
            {
                **LM,
                "gradient_accumulation_steps": 2,
                "torch_compile": True,
                "torch_compile_backend": "eager",
                **EVALUATES,
            },
            why="compiling changes no number",
        ),
        Case("bf16_classifier_dropout", classifier(0.1), {"bf16": True, **EVALUATES}, {"bf16": False}),
        Case(
            "gradient_checkpointing_dropout",
            with_model(language_model(0.1), _count_forwards),
            {**LM, **checkpointing},
            {"gradient_checkpointing": False},
            drive=_train_and_report_forwards,
        ),
    ]


def _count_forwards(model: Any) -> Any:
    model.forwards_of_first_block = 0

    def count(module: Any, inputs: Any) -> None:
        model.forwards_of_first_block += 1

    model.transformer.h[0].mlp.register_forward_pre_hook(count)
    return model


def _train_and_report_forwards(side: Side, build: Build) -> tuple[Any, Any]:
    trainer = build()
    trainer.train()
    return trainer, trainer.model.forwards_of_first_block
