"""The runs that are killed: everything random that a real one has, small enough to be started a hundred times."""

from __future__ import annotations

import hashlib
import json
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mainspring import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

FEATURES = 16
TIMES = ("runtime", "per_second", "wait_fraction")


class Noisy(Dataset[dict[str, Tensor]]):
    """Samples that are augmented with torch's random numbers each time they are read."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, FEATURES, generator=generator)
        self.y = torch.randint(0, 3, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "x": self.x[index] + 0.1 * torch.randn(FEATURES),
            "labels": self.y[index],
            "sample": torch.tensor(index),
        }


def masking(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A collator that draws from all three generators."""
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    keep = torch.from_numpy(np.random.rand(*batch["x"].shape) > 0.2)
    batch["x"] = torch.where(keep, batch["x"], random.random())
    return batch


class Classifier(nn.Module):
    """A classifier with dropout that remembers which samples it has trained on, in which order.

    Args:
        width: Of its hidden layer; 3_000_000 makes a model of more than 50 MB.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 32)
        self.dropout = nn.Dropout(0.3)
        self.table = nn.Embedding(width, 4)
        self.last = nn.Linear(36, 3)
        self.register_buffer("order", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, sample: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits of a batch of (rows, 16) features."""
        if self.training:
            for index in sample.tolist():
                self.order.copy_((self.order * 1_000_003 + index + 1) % (2**61 - 1))
        hidden = self.dropout(torch.relu(self.first(x)))
        logits = self.last(torch.cat([hidden, self.table(sample % self.table.num_embeddings)], dim=1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class SavesAgain(TrainerCallback):
    """Asks for a checkpoint at the end of each epoch, whose last update may have been saved already."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = True


class Touches(TrainerCallback):
    """Rewrites a file of each checkpoint, as those do that add what a model's users need."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "training_args.json"
        file.write_text(file.read_text() + "\n")


@dataclass(frozen=True)
class Scenario:
    """One run.

    Attributes:
        name: What it shows.
        options: Beyond the common ones.
        width: Of the model's table.
        callbacks: Make its callbacks.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    width: int = 32
    callbacks: Sequence[Callable[[], TrainerCallback]] = (partial(EarlyStoppingCallback, 4),)

    def run(self, folder: Path, *watching: TrainerCallback) -> None:
        """Train to the end, going on from whatever lies in the folder, and write the outcome beside it."""
        trainer = build(self, folder, *watching)
        trainer.train(resume_from_checkpoint="auto")
        folder.with_suffix(".json").write_text(json.dumps(outcome(trainer)))


COMMON = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.2,
    "logging_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 0.2,
    "save_steps": 0.2,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "use_cpu": True,
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "report_to": "none",
}

BY_EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_steps": None, "save_steps": 0}
ONLY_THE_NEWEST = {"save_total_limit": 1, "load_best_model_at_end": False, "eval_strategy": "no", "eval_steps": None}
# No evaluation is so much better than the first: the third one ends the run, at update 9 of 12.
IMPATIENT = partial(EarlyStoppingCallback, early_stopping_patience=2, early_stopping_threshold=100.0)

ALONE = Scenario("in the training process")
WORKERS = Scenario("with workers", {"dataloader_num_workers": 2})
EPOCHS = Scenario("by epochs", BY_EPOCHS)
BACKGROUND = Scenario("in the background", {"save_in_background": True})
LARGE = Scenario("large", {"save_steps": 0.4, "eval_steps": 0.4, "num_train_epochs": 1}, width=3_300_000)
LENGTHS = Scenario("by length", {"train_sampling_strategy": "group_by_length", "length_column_name": "sample"})
STOPPED = Scenario("stopped early", callbacks=(IMPATIENT,))
SAVED_AGAIN = Scenario("saved again", callbacks=(SavesAgain,))
TOUCHED = Scenario("touched", ONLY_THE_NEWEST, callbacks=(Touches,))
TOUCHED_LATE = Scenario("touched late", {**ONLY_THE_NEWEST, "save_in_background": True}, callbacks=(Touches,))


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of right predictions."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def build(scenario: Scenario, folder: Path, *watching: TrainerCallback) -> Trainer:
    """The trainer of a scenario; the same at each start."""
    torch.manual_seed(11)
    return Trainer(
        Classifier(scenario.width),
        TrainingArguments(str(folder), **{**COMMON, **scenario.options}),
        data_collator=masking,
        train_dataset=Noisy(42, seed=1),
        eval_dataset=Noisy(10, seed=2),
        compute_metrics=accuracy,
        callbacks=[*(make() for make in scenario.callbacks), *watching],
    )


def outcome(trainer: Trainer) -> dict[str, Any]:
    """What must be the same however often a run was killed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    history = [
        {key: value for key, value in log.items() if not any(time in key for time in TIMES)}
        for log in trainer.state.log_history
    ]
    return {
        "weights": digest.hexdigest(),
        "history": history,
        "order": int(trainer.model.order),
        "best": [trainer.state.best_metric, trainer.state.best_global_step],
        "step": trainer.state.global_step,
        "planned": trainer.state.max_steps,
        "patience": [
            callback.early_stopping_patience_counter
            for callback in trainer.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        ],
    }


def run(scenario: Scenario, folder: Path, *watching: TrainerCallback) -> None:
    """Do the run of a scenario."""
    scenario.run(folder, *watching)


class AsksToStop(TrainerCallback):
    """Sends this process a SIGTERM at an event, the `count`-th time that it happens."""

    def __init__(self, event: str, count: int) -> None:
        self.left = count
        setattr(self, event, self.happen)

    def happen(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGTERM)


def run_until_asked_to_stop(scenario: Scenario, folder: Path, event: str, count: int) -> None:
    """Train until a request to stop ends the process."""
    run(scenario, folder, AsksToStop(event, count))
