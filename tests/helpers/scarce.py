"""A model on a device that holds only so much, and small runs of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mainspring import Trainer, TrainingArguments
from tests.helpers import data, models

ROWS = 23
"""Not a multiple of a batch: the last one of an epoch is short."""


class Memory(nn.Module):
    """A model on a device that holds only so many rows at a time.

    Args:
        inner: The model.
        fails: Told the rows of a batch and its number; whether it does not fit.
        backward: Whether memory runs out in the backward pass, after some gradients were made.
    """

    accepts_loss_kwargs = False

    def __init__(self, inner: nn.Module, fails: Callable[[int, int], bool], backward: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.fails = fails
        self.backward = backward
        self.passes: list[int] = []  # rows of each forward pass
        self.main_input_name = getattr(inner, "main_input_name", "input_ids")

    def forward(self, **inputs: Any) -> Any:
        rows = next(iter(inputs.values())).shape[0]
        self.passes.append(rows)
        fails = self.training and self.fails(rows, len(self.passes))
        if fails and not self.backward:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if fails:
            self._fail_in_backward()
        return self.inner(**inputs)

    def _fail_in_backward(self) -> None:
        """When the first layer has its turn, which comes last."""

        def fail(gradient: Tensor) -> None:
            hook.remove()
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 4"
            )

        hook = next(self.inner.parameters()).register_hook(fail)


class Kwargs(Memory):
    """The same, of a model that takes `num_items_in_batch`."""

    accepts_loss_kwargs = True

    def forward(self, num_items_in_batch: Any = None, **inputs: Any) -> Any:
        extra = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        rows = inputs["input_ids"].shape[0]
        self.passes.append(rows)
        if self.training and self.fails(rows, len(self.passes)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.inner(**inputs, **extra)


def more_than(limit: int) -> Callable[[int, int], bool]:
    return lambda rows, _: rows > limit


def never(rows: int, number: int) -> bool:
    return False


class Tokens(nn.Module):
    """A mean over the labels of a batch, which has other numbers of them in each."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(models.VOCABULARY, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, models.VOCABULARY)

    def forward(self, input_ids: Any, labels: Any = None, attention_mask: Any = None) -> dict[str, Any]:
        logits = self.head(self.dropout(torch.tanh(self.words(input_ids))))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def items_of_mean(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
    summed = nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten(), reduction="sum")
    return summed / num_items_in_batch


class Router(Tokens):
    """Adds a mean over its rows to a sum over the labels of the update, as mixtures of experts do."""

    def forward(self, num_items_in_batch: Any = None, **inputs: Any) -> dict[str, Any]:
        outputs = super().forward(**inputs)
        balance = self.words(inputs["input_ids"]).square().mean()
        labels = inputs["labels"]
        loss = items_of_mean(
            outputs, labels, (labels != data.IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        )
        return {**outputs, "loss": loss + 0.5 * balance, "aux_loss": balance}


def of_one_length(count: int) -> list[dict[str, Any]]:
    """Rows of which every mean over some is a mean of the rows' own."""
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in data.sentences(count, length=6)]


def texts(count: int = ROWS) -> list[dict[str, Any]]:
    """Ragged texts, of which some have no label at all."""
    made = data.ragged_text(count, seed=3)
    for index in (1, 2, 3, 8, 13):
        made[index]["labels"] = torch.full_like(made[index]["labels"], data.IGNORED)
    return made


class Normalised(nn.Module):
    """Statistics of its batches are buffers; dropout draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        self.mean = 0.5 * self.mean + 0.5 * x.mean(0)  # another tensor each time
        return {"loss": (self.dropout(self.norm(self.layer(x))).sum(-1) - labels).square().mean()}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "auto_find_batch_size": True,
    }
    return TrainingArguments(str(folder), **{**chosen, **options})


def points() -> list[dict[str, Any]]:
    return data.points(ROWS, seed=1)


class OfRouter(Kwargs):
    config = SimpleNamespace(router_aux_loss_coef=0.5)


def build(
    folder: Path,
    make: Callable[[], nn.Module] = Tokens,
    fails: Callable[[int, int], bool] = never,
    *,
    kind: type[Trainer] = Trainer,
    memory: type[Memory] = Memory,
    backward: bool = False,
    more: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    torch.manual_seed(0)
    model = memory(make(), fails, backward)
    given = {"train_dataset": texts(), "data_collator": data.collate_text, **(more or {})}
    return kind(model, arguments(folder, **options), **given)


def logged(trainer: Any, *names: str) -> list[list[float]]:
    return [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log]


def assert_same(one: Any, other: Any) -> None:
    """The same weights, losses and norms to rounding; all that is counted to the last bit."""
    for (name, found), expected in zip(
        one.model.inner.state_dict().items(), other.model.inner.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(
        torch.tensor(logged(one, "loss", "grad_norm")),
        torch.tensor(logged(other, "loss", "grad_norm")),
        rtol=1e-5,
        atol=1e-6,
    )
    assert logged(one, "learning_rate", "epoch") == logged(other, "learning_rate", "epoch")
    assert one.state.global_step == other.state.global_step
    assert one.state.total_flos == other.state.total_flos
    assert one.state.num_input_tokens_seen == other.state.num_input_tokens_seen
