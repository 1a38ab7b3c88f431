"""What scripts of version 4.37 did: models, data and options that both libraries run, and what is recorded of a run.

Nothing here imports either library, and nothing is random: weights and data are formulas, in float64, so that the numbers
do not depend on the version of torch beyond their last bits.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

FEATURES, IGNORED = 3, -100
CLOCK = ("_runtime", "_per_second", "_preparation_time")
NOT_COMPARED = ("grad_norm", "eval_samples", "eval_steps")
"""Keys that 4.37 does not log, or that only one side's counting shows."""

QUIET: Mapping[str, Any] = {
    "no_cuda": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 0.05,
}
EVALUATES: Mapping[str, Any] = {"evaluation_strategy": "steps", "eval_steps": 1}
SAVES: Mapping[str, Any] = {"save_strategy": "steps", "save_steps": 2}


# ---- models and data -------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Something like a normalisation, of a class that no library knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Net(nn.Module):
    """A regression network with weights by formula."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 5)
        self.layer_norm = nn.LayerNorm(5)
        self.out_norm = Scale(5)
        self.head = nn.Linear(5, outputs)
        self.double()
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                values = [((7 * k + 3 * index) % 11 - 5) / 8 for k in range(parameter.numel())]
                parameter.copy_(torch.tensor(values, dtype=torch.float64).reshape(parameter.shape))

    def predict(self, x: Tensor) -> Tensor:
        return self.head(self.out_norm(torch.tanh(self.layer_norm(self.hidden(x)))))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        prediction = self.predict(x).squeeze(-1)
        return {"loss": ((prediction - labels) ** 2).mean(), "logits": prediction}


class Dropping(Net):
    """With dropout: the next random numbers depend on how many were drawn before."""

    def predict(self, x: Tensor) -> Tensor:
        return super().predict(nn.functional.dropout(x, 0.3, self.training))


class Masked(Net):
    """Three labels a row, some of which do not count; normalises its loss by their number in the update, if told."""

    accepts_loss_kwargs = True

    def __init__(self) -> None:
        super().__init__(outputs=3)

    def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: Any = None) -> dict[str, Tensor]:
        prediction, counts = self.predict(x), labels != IGNORED
        total = torch.where(counts, (prediction - labels) ** 2, 0.0).sum()
        return {"loss": total / (counts.sum() if num_items_in_batch is None else num_items_in_batch)}


Row = dict[str, Tensor]


def rows(count: int, start: int = 0) -> list[Row]:
    """Rows with one label."""
    return [
        {
            "x": torch.tensor([((5 * i + 3 * j) % 7 - 3) / 4 for j in range(FEATURES)], dtype=torch.float64),
            "labels": torch.tensor((3 * i % 5 - 2) / 2, dtype=torch.float64),
        }
        for i in range(start, start + count)
    ]


def masked_rows(count: int, start: int = 0) -> list[Row]:
    """Rows with one to three labels that count."""
    made = rows(count, start)
    for index, row in enumerate(made):
        labels = [float(row["labels"]) + k if k <= index % 3 else IGNORED for k in range(3)]
        row["labels"] = torch.tensor(labels, dtype=torch.float64)
    return made


class Items(Dataset[Row]):
    def __init__(self, items: list[Row]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Row:
        return self.items[index]


class Stream(IterableDataset[Row]):
    def __init__(self, items: list[Row]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Row]:
        return iter(self.items)


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Library:
    """One of the two.

    Attributes:
        trainer: Its Trainer, which takes the samples as they lie.
        arguments: `(folder, **options)` makes its TrainingArguments, from the spellings of 4.37.
        early_stopping: Its EarlyStoppingCallback.
        module: Where its Trainer looks for `speed_metrics`.
    """

    trainer: Any
    arguments: Callable[..., Any]
    early_stopping: Any
    module: Any


Drive = Callable[[Callable[..., Any], Path], tuple[Any, Any]]
"""`drive(build, folder)` does what the script does with `build(**more_options)`, its Trainer; returns that and the output."""


def train(build: Callable[..., Any], folder: Path) -> tuple[Any, Any]:
    """Train once."""
    trainer = build()
    return trainer, trainer.train()


def resume_from(step: int) -> Drive:
    """Train, then once more from a checkpoint of that run, the later ones being gone."""

    def drive(build: Callable[..., Any], folder: Path) -> tuple[Any, Any]:
        build().train()
        for later in folder.glob("checkpoint-*"):
            if int(later.name.split("-")[1]) > step:
                later.rename(folder / f"later-{later.name}")
        trainer = build()
        return trainer, trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))

    return drive


def beside_older_ones(*names: str) -> Drive:
    """Train into a folder that holds checkpoints of an earlier run, written in this order."""

    def drive(build: Callable[..., Any], folder: Path) -> tuple[Any, Any]:
        write_checkpoints(folder, names)
        return train(build, folder)

    return drive


@dataclass(frozen=True)
class Scenario:
    """One script.

    Attributes:
        name: Identifies it.
        about: Rows of the table of behaviours that its numbers depend on.
        options: Options, besides the quiet ones.
        model: Builds the model.
        data: Its training rows.
        evaluation: Its evaluation rows.
        scores: What `compute_metrics` returns as `score`, evaluation by evaluation; none for no such function.
        patience: Of early stopping; 0 for none.
        drive: What it does with its Trainer.
    """

    name: str
    about: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[[], Net] = Net
    data: Callable[[], Any] = lambda: Items(rows(30))
    evaluation: Callable[[], list[Row]] = lambda: rows(10, start=2)
    scores: tuple[float, ...] = ()
    patience: int = 0
    drive: Drive = train


def _with_a_hole(made: list[Row]) -> list[Row]:
    made[5]["labels"] = torch.tensor(math.nan, dtype=torch.float64)
    return made


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "micro-batches left at the end of an epoch",
        ("short_updates", "round_logs", "log_rate_used", "log_numerics"),
        {"gradient_accumulation_steps": 3, "num_train_epochs": 4},
    ),
    Scenario(
        "an epoch that is shorter than an update",
        ("short_updates",),
        {"gradient_accumulation_steps": 3, "num_train_epochs": 4},
        data=lambda: Items(rows(8)),
    ),
    Scenario(
        "a stream that ends inside an update",
        ("short_updates",),
        {"gradient_accumulation_steps": 3, "max_steps": 6},
        data=lambda: Stream(rows(20)),
    ),
    Scenario(
        "the last update is not on the grid",
        ("final_events",),
        {
            "num_train_epochs": 1,
            "logging_steps": 3,
            "logging_first_step": True,
            **EVALUATES,
            **SAVES,
            "eval_steps": 3,
            "save_steps": 3,
        },
    ),
    Scenario(
        "unequal numbers of labels",
        ("loss_by_items",),
        {"gradient_accumulation_steps": 2, "num_train_epochs": 1, "max_grad_norm": 0.0, **EVALUATES},
        model=Masked,
        data=lambda: Items(masked_rows(30)),
        evaluation=lambda: masked_rows(10, start=2),
    ),
    Scenario(
        "weight decay",
        ("decay_by_name",),
        {"num_train_epochs": 1, "weight_decay": 0.5, "lr_scheduler_type": "cosine", "warmup_ratio": 0.3},
    ),
    Scenario(
        "an evaluation loss that is not a number",
        ("finite_evaluations",),
        {"num_train_epochs": 1, **EVALUATES, "eval_steps": 4},
        evaluation=lambda: _with_a_hole(rows(10)),
    ),
    Scenario(
        "the best metric falls between two checkpoints",
        ("best_at_every_evaluation",),
        {
            "num_train_epochs": 1,
            **EVALUATES,
            **SAVES,
            "metric_for_best_model": "score",
            "greater_is_better": True,
            "save_total_limit": 2,
        },
        scores=(3, 5, 9, 6, 1, 2, 7, 0),
    ),
    Scenario(
        "the best model is loaded, and the only one kept",
        ("best_at_every_evaluation",),
        {
            "num_train_epochs": 1,
            **EVALUATES,
            **SAVES,
            "metric_for_best_model": "score",
            "load_best_model_at_end": True,
            "save_total_limit": 1,
        },
        scores=(3, 5, 9, 6, 1, 2, 7, 0),
    ),
    Scenario(
        "checkpoints of an earlier run",
        ("rotate_by_time",),
        {"num_train_epochs": 1, **SAVES, "save_steps": 4, "save_total_limit": 3},
        drive=beside_older_ones("checkpoint-100", "checkpoint-50"),
    ),
    Scenario(
        "resumed between two logs",
        ("resume_log_window", "train_loss_of_session", "speed_of_session"),
        {"num_train_epochs": 1, "logging_steps": 3, **SAVES, "save_steps": 5},
        drive=resume_from(5),
    ),
    Scenario(
        "resumed where micro-batches had been carried over",
        ("exact_position",),
        {"gradient_accumulation_steps": 3, "num_train_epochs": 3, **SAVES, "save_steps": 3},
        drive=resume_from(3),
    ),
    Scenario(
        "resumed with some patience used up",
        ("restore_callback_states",),
        {
            "num_train_epochs": 1,
            **EVALUATES,
            **SAVES,
            "save_steps": 1,
            "metric_for_best_model": "score",
            "load_best_model_at_end": True,
        },
        scores=(9, 8, 7, 6, 5, 4, 3, 2),
        patience=3,
        drive=resume_from(3),
    ),
    Scenario(
        "dropout, resumed inside an epoch",
        (),
        {"num_train_epochs": 2, "gradient_accumulation_steps": 2, **SAVES, "save_steps": 3},
        model=Dropping,
        drive=resume_from(3),
    ),
    Scenario(
        "everything by epochs, the last one cut short",
        (),
        {
            "num_train_epochs": 2.5,
            "evaluation_strategy": "epoch",
            "logging_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "optim": "adafactor",
        },
    ),
)

OVER_TWO_PROCESSES = Scenario(
    "over two processes",
    ("cut_filling",),
    {"gradient_accumulation_steps": 3, "num_train_epochs": 3, **EVALUATES},
)


def run(scenario: Scenario, library: Library, folder: Path) -> dict[str, Any]:
    """Run a scenario and record it as plain values."""
    torch.set_num_threads(1)
    scores = itertools.chain(scenario.scores)

    def build(**more: Any) -> Any:
        args = library.arguments(folder, **{**QUIET, **scenario.options, **more})
        return library.trainer(
            model=scenario.model(),
            args=args,
            train_dataset=scenario.data(),
            eval_dataset=Items(scenario.evaluation()),
            compute_metrics=(lambda _: {"score": next(scores)}) if scenario.scores else None,
            callbacks=[library.early_stopping(scenario.patience)] if scenario.patience else None,
        )

    with mock.patch.object(library.module, "speed_metrics", counted):
        return record(*scenario.drive(build, folder), folder)


def leave() -> None:
    """End this process of several. Torch's threads now and then abort one that ends in the ordinary way."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)


def counted(
    split: str, start_time: float, num_samples: Any = None, num_steps: Any = None, num_tokens: Any = None
) -> dict[str, Any]:
    """In place of `speed_metrics`: what would have been divided by the time."""
    return {f"{split}_samples": num_samples, f"{split}_steps": num_steps}


def record(trainer: Any, output: Any, folder: Path) -> dict[str, Any]:
    """What must be equal of a finished run."""
    state = trainer.state
    best = state.best_model_checkpoint
    return {
        "logs": [_comparable(entry) for entry in state.log_history],
        "metrics": _comparable(output.metrics),
        "state": {
            "epoch": state.epoch,
            "global_step": state.global_step,
            "max_steps": state.max_steps,
            "num_train_epochs": min(state.num_train_epochs, 10**9),  # as many as needed, on a stream
            "best_metric": state.best_metric,
            "best_model_checkpoint": best and Path(best).name,
        },
        "weights": trainer.model.head.weight.detach().flatten().tolist(),
        "checkpoints": sorted(path.name for path in folder.glob("checkpoint-*")),
    }


def _comparable(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.endswith(CLOCK) and key not in NOT_COMPARED}


# ---- tables ----------------------------------------------------------------------------------------------------------

PLANS = tuple(itertools.product((4, 10, 30), (1, 3, 8), (0.3, 1.0, 2.5), (-1, 7)))
"""Rows, micro-batches per update, epochs, max_steps."""

METRICS = ("loss", "eval_loss", "eval_data1_loss", "my_loss", "accuracy")
"""Names whose `greater_is_better` is asked for."""

KEPT = tuple(itertools.product((1, 2, 3), (None, 10, 20, 30, 40)))
"""`save_total_limit` and the step of the best checkpoint."""

WRITTEN = ("checkpoint-10", "checkpoint-40", "checkpoint-20", "checkpoint-30")
"""Checkpoints in the order in which they were written."""


def write_checkpoints(folder: Path, names: Iterable[str] = WRITTEN) -> None:
    """Make the folders of checkpoints, an hour apart."""
    for hour, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (3600.0 * hour, 3600.0 * hour))


def transformers_models() -> dict[str, nn.Module]:
    """Models of the installed transformers, which have normalisations of different classes."""
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    return {
        "bert": BertModel(BertConfig(**sizes, **heads)),
        "llama": LlamaForCausalLM(LlamaConfig(**sizes, **heads)),
        "mistral": MistralForCausalLM(MistralConfig(**sizes, **heads, num_key_value_heads=1)),
        "t5": T5ForConditionalGeneration(T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
    }


def arithmetic() -> dict[str, str]:
    """Where the same numbers come out to the last bit."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def as_text(golden: Any) -> str:
    """JSON with one line for each innermost list or mapping."""
    text = json.dumps(golden, indent=1, sort_keys=True)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
