"""An update is a mean over its tokens, or its samples, however unequal the micro-batches are that it falls into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mainspring import Trainer, TrainingArguments
from tests.helpers import models

BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}


def texts(count: int) -> list[dict[str, Any]]:
    """Ragged texts of which some tokens are labelled."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in torch.randint(3, 12, (count,), generator=generator).tolist():
        ids = torch.randint(3, 40, (length,), generator=generator)
        labels = torch.where(torch.rand(length, generator=generator) < 0.5, ids, -100)
        labels[0] = ids[0]
        made.append({"input_ids": ids, "labels": labels})
    return made


def padded(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    fill = {"input_ids": 0, "labels": -100}
    batch = {
        name: nn.utils.rnn.pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)
        for name, value in fill.items()
    }
    return {**batch, "attention_mask": (batch["input_ids"] != 0).long()}


def sentences(count: int) -> list[dict[str, Any]]:
    return [{"input_ids": text["input_ids"], "labels": text["input_ids"][:1] % 2} for text in texts(count)]


def with_one_label(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {**padded(samples), "labels": torch.cat([sample["labels"] for sample in samples])}


def points(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    return [{"x": torch.randn(4, generator=generator), "y": torch.randn(1, generator=generator)} for _ in range(count)]


class Regression(nn.Module):
    """A plain module whose loss is a mean over samples, and which has no labels by that name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.layer(x) - y).square().mean()}


TASKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], Any]] = {
    "masked": (lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)), texts, padded),
    "tokens": (
        lambda: transformers.BertForTokenClassification(transformers.BertConfig(**BERT, num_labels=40)),
        texts,
        padded,
    ),
    "sentences": (
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=2)),
        sentences,
        with_one_label,
    ),
    "translation": (
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(**T5, decoder_start_token_id=0, pad_token_id=0)
        ),
        texts,
        padded,
    ),
    "regression": (Regression, points, None),
    "language": (lambda: models.tiny_gpt2(), texts, padded),
}


def trained(task: str, folder: Path, size: int, parts: int, **options: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and weights of one update with eight samples."""
    make, data, collate = TASKS[task]
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=parts,
        num_train_epochs=1,
        logging_steps=1,
        optim="sgd",
        learning_rate=0.5,
        max_grad_norm=0,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(make(), arguments, train_dataset=data(8), data_collator=collate)
    trainer.train()
    assert trainer.state.global_step == 1
    return trainer.state.log_history[0]["loss"], trainer.model.state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("size", "parts"), [(3, 3), (5, 2), (7, 2), (1, 8)])
def test_an_update_does_not_depend_on_its_parts(task: str, size: int, parts: int, tmp_path: Path) -> None:
    whole, expected = trained(task, tmp_path, 8, 1)
    loss, weights = trained(task, tmp_path, size, parts)
    assert loss == pytest.approx(whole, abs=1e-6)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_references_updates_do(tmp_path: Path) -> None:
    whole, _ = trained("tokens", tmp_path, 8, 1, compat="5")
    split, _ = trained("tokens", tmp_path, 3, 3, compat="5")
    assert split != pytest.approx(whole, abs=1e-4)
