"""Trainers that note which samples they train on, with data and loaders of every kind a script might bring."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from mainspring import Trainer, TrainingArguments

COUNT = 22
BATCH = 4


class Line(nn.Module):
    """A weight, and dropout, which draws from the generator that orders are drawn from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.dropout(self.weight * x) - x).pow(2).mean() / 100}


class Numbers(Dataset[Any]):
    """Map-style: sample number i holds i."""

    def __init__(self, count: int = COUNT) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, float]:
        return {"x": float(index)}


class Stream(IterableDataset[Any]):
    """A stream in an order that it draws from the global generator when it begins."""

    def __init__(self, count: int = COUNT) -> None:
        self.count = count

    def __iter__(self) -> Iterator[dict[str, float]]:
        for index in torch.randperm(self.count).tolist():
            yield {"x": float(index)}


class Endless(IterableDataset[Any]):
    """A stream without an end."""

    def __iter__(self) -> Iterator[dict[str, float]]:
        return ({"x": float(index)} for index in count())


class Seeded(Stream):
    """A stream with a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def __iter__(self) -> Iterator[dict[str, float]]:
        for index in torch.randperm(self.count, generator=self.generator).tolist():
            yield {"x": float(index)}


class Standing(Stream):
    """A stream that says where it stands, and counts what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.next = 0
        self.reads = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]

    def __iter__(self) -> Iterator[dict[str, float]]:
        while self.next < self.count:
            self.next += 1
            self.reads += 1
            yield {"x": float(self.next - 1)}
        self.next = 0


class Lazy(Sampler[int]):
    """It draws each index from Python's generator when it is asked for."""

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[int]:
        return (random.randrange(COUNT) for _ in range(COUNT))


class Forever(Sampler[int]):
    """It never ends."""

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(COUNT).tolist()
        while True:
            yield from order


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {"x": torch.tensor([float(row["x"]) for row in rows])}


def loader(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    """A plain loader of a script's own."""
    given = {"collate_fn": collate, **({} if "batch_sampler" in options else {"batch_size": BATCH}), **options}
    return DataLoader(Numbers() if dataset is None else dataset, **given)


def _batches() -> list[dict[str, Tensor]]:
    return [{"x": torch.tensor([4.0 * i, 4.0 * i + 1])} for i in range(6)]


FOREIGN: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: loader(shuffle=True),
    "shuffled with a generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(4)),
    "shuffled by a worker": lambda: loader(shuffle=True, num_workers=1),
    "batch sampler": lambda: loader(batch_sampler=BatchSampler(RandomSampler(range(COUNT)), 3, drop_last=True)),
    "weighted": lambda: loader(sampler=WeightedRandomSampler(torch.ones(COUNT), COUNT)),
    "drawn as it goes": lambda: loader(sampler=Lazy()),
    "in a row": lambda: loader(drop_last=True),
    "stream": lambda: loader(Stream()),
    "endless stream": lambda: loader(Endless()),
    "endless sampler": lambda: loader(sampler=Forever()),
    "unbatched": lambda: DataLoader(_batches(), batch_size=None, shuffle=True),
    "list": _batches,
}
"""Loaders that scripts return from `get_train_dataloader`."""


class Noting(Trainer):
    """A trainer that notes its samples, and takes a loader of the script's own."""

    own: Callable[[], Any] | None = None
    prepares = False
    seen: list[list[int]]

    def get_train_dataloader(self) -> Any:
        if self.own is None:
            return super().get_train_dataloader()
        return self.accelerator.prepare(self.own()) if self.prepares else self.own()

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append([int(number) for number in inputs["x"].flatten()])
        return super().training_step(model, inputs, *args, **kwargs)


def trainer(
    folder: Path,
    dataset: Any = None,
    own: Callable[[], Any] | None = None,
    prepares: bool = False,
    kind: type[Noting] = Noting,
    collator: Any = collate,
    **options: Any,
) -> Noting:
    """A trainer of nine updates in epochs of six, with a checkpoint at every second one."""
    torch.manual_seed(3)
    merged = {
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.05,
        "max_steps": 9,
        "save_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        **options,
    }
    build: Any = kind
    made: Noting = build(
        Line(),
        TrainingArguments(str(folder), **merged),
        data_collator=collator,
        train_dataset=Numbers() if dataset is None else dataset,
    )
    made.own, made.prepares, made.seen = own, prepares, []
    return made
