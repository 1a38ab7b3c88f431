"""Train on this process of several on ragged texts, in each order that follows from lengths, and save what updates saw."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from mainspring import Trainer, TrainingArguments
from tests.helpers import data
from tests.helpers.models import tiny_gpt2

ORDERS: dict[str, dict[str, Any]] = {
    "group_by_length": {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 3},
    "token_budget": {"train_sampling_strategy": "token_budget", "max_tokens_per_batch": 30},
    "packed": {"pack_sequences": True, "pack_length": 24, "per_device_train_batch_size": 1},
}
PLAIN = {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 1, "dataloader_drop_last": True}
"""Of packed runs whose updates one process can make as well, to rounding."""

EVERY = 2
"""Updates from one checkpoint to the next."""

STOPS = (2, 8)
"""In the middle of the first epoch, and of the second."""


def texts(count: int = 40) -> list[dict[str, torch.Tensor]]:
    """Texts that repeat their own number, from 1 on."""
    lengths = [2 + 7 * number % 11 for number in range(count)]
    tokens = [torch.full((length,), number + 1) for number, length in enumerate(lengths)]
    return [{"input_ids": one, "labels": one.clone()} for one in tokens]


class Recording(Trainer):
    """Notes the tokens of each micro-batch."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append(inputs["input_ids"].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def train(folder: Path, resume: Path | None = None, dropout: float = 0.1, **options: Any) -> dict[str, Any]:
    """One run, or the rest of one: what each of its micro-batches had, its losses, its weights."""
    torch.manual_seed(0)
    args = TrainingArguments(
        str(folder),
        **{"num_train_epochs": 2, "learning_rate": 1e-2, **options},
        save_steps=EVERY,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer: Any = Recording(
        tiny_gpt2(dropout), args, data_collator=data.collate_text, train_dataset=data.Items(texts())
    )
    trainer.seen = []
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return {
        "seen": trainer.seen,
        "losses": [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log],
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "epoch_steps": trainer.plan().steps_in_epoch,
    }


def main(out: Path) -> None:
    """Save what this process saw: whole runs, resumed ones, and those that one process began in `out / "alone"`."""
    found: dict[str, Any] = {"plain": train(out / "plain", dropout=0.0, **PLAIN, **ORDERS["packed"])}
    for name, options in ORDERS.items():
        found[name] = train(out / name, **options)
        for stop in STOPS:
            found[name, stop] = train(out / "resumed", out / name / f"checkpoint-{stop}", **options)
        found[name, "taken over"] = train(
            out / "taken over", out / "alone" / name / f"checkpoint-{STOPS[0]}", **options, num_train_epochs=1
        )
    torch.save(found, out / f"ragged-rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
