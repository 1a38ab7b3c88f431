"""Deterministic datasets and the collators that batch them. No file, no network, no shared random stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from tests.helpers.models import FEATURES, POSITIONS, VOCABULARY

IGNORED = -100
Item = dict[str, Any]


class Items(Dataset[Item]):
    """A map-style dataset over a list that remembers which indices were read.

    Attributes:
        reads: Indices asked for so far, in order (in this process).
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = list(items)
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        self.reads.append(index)
        return dict(self.items[index])


class Stream(IterableDataset[Item]):
    """The same items without a length."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = list(items)

    def __iter__(self) -> Iterator[Item]:
        return (dict(item) for item in self.items)


def ragged_text(count: int, seed: int = 0) -> list[Item]:
    """Texts of 3 to 14 tokens whose prompt (up to half of them) carries no label: every batch counts differently."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count):
        length = int(torch.randint(3, 15, (), generator=generator))
        tokens = torch.randint(3, VOCABULARY, (length,), generator=generator)
        labels = tokens.clone()
        labels[: int(torch.randint(0, length // 2 + 1, (), generator=generator))] = IGNORED
        items.append({"input_ids": tokens, "labels": labels})
    return items


def collate_text(items: Sequence[Item]) -> dict[str, Tensor]:
    """Pad to the longest text of the batch: ids with 0, mask with 0, labels with -100."""

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids = [torch.as_tensor(item["input_ids"]) for item in items]
    batch = {"input_ids": pad(ids, 0), "attention_mask": pad([torch.ones_like(row) for row in ids], 0)}
    if all("labels" in item for item in items):
        batch["labels"] = pad([torch.as_tensor(item["labels"]) for item in items], IGNORED)
    return batch


def collate_to_full_length(items: Sequence[Item]) -> dict[str, Tensor]:
    """As `collate_text`, but every batch has the model's whole length, whichever texts fall into it."""
    batch = collate_text(items)
    missing = POSITIONS - batch["input_ids"].shape[1]
    fill = {"labels": IGNORED}
    return {name: torch.nn.functional.pad(rows, (0, missing), value=fill.get(name, 0)) for name, rows in batch.items()}


def sentences(count: int, seed: int = 0, length: int = 8) -> list[Item]:
    """Fixed-length token rows with a class: whether the first token lies in the upper half of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count):
        tokens = torch.randint(3, VOCABULARY, (length,), generator=generator)
        items.append({"input_ids": tokens.tolist(), "label": int(tokens[0] >= VOCABULARY // 2)})
    return items


def points(count: int, seed: int = 0) -> list[Item]:
    """Rows of four normal features with a noisy linear target."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator)
    noise = 0.1 * torch.randn(count, generator=generator)
    y = x @ torch.linspace(-1, 1, FEATURES) + 0.5 + noise
    return [{"x": row, "labels": float(target)} for row, target in zip(x, y, strict=True)]


def without(items: Sequence[Item], *names: str) -> list[Item]:
    """The same items lacking the columns `names`."""
    return [{name: value for name, value in item.items() if name not in names} for item in items]


Collator = Callable[[Sequence[Item]], dict[str, Tensor]]
