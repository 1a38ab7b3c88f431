"""The samples that an event names are those that were read, in every order of our making."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring.data.epoch_order import EpochOrder
from mainspring.data.loaders import LoaderOptions, build_loader
from mainspring.data.position import batches_from
from tests.helpers import data
from tests.helpers.runs import trainer

ORDERS: dict[str, dict[str, Any]] = {
    "random": {},
    "sequential": {"train_sampling_strategy": "sequential"},
    "grouped": {"train_sampling_strategy": "group_by_length"},
    "budget": {"train_sampling_strategy": "token_budget", "max_tokens_per_batch": 40, "per_device_train_batch_size": 8},
    "packed": {"pack_sequences": True, "pack_length": 32, "per_device_train_batch_size": 1},
    "drop last": {"dataloader_drop_last": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", ORDERS.values(), ids=ORDERS)
def test_they_are_those_that_were_read(options: dict[str, Any], tmp_path: Path) -> None:
    run = trainer(tmp_path, remove_unused_columns=False, **options)
    train, loader = run.train_dataset, run.get_train_dataloader()
    order = EpochOrder.of(loader)
    assert order is not None
    for epoch in (0, 3):
        batches = batches_from(loader, epoch)
        for number in range(4):
            train.reads.clear()
            next(batches)
            read = list(train.reads)
            assert order.samples_of(epoch, number, 1) == [read], (epoch, number)
            assert order.samples_of(epoch, number, 2)[0] == read  # type: ignore[index]


def test_each_process_names_its_own() -> None:
    rows = data.Items([{"x": torch.tensor(float(index))} for index in range(12)])
    found = []
    for rank in range(2):
        loader = build_loader(
            rows,
            batch_size=3,
            collate_fn=list,
            sampler=None,
            drop_last=False,
            rank=rank,
            world_size=2,
            options=LoaderOptions(pin_memory=False),
        )
        order = EpochOrder.of(loader)
        assert order is not None
        found.append(order.samples_of(0, 0, 2))
    assert found == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]


def test_an_order_of_somebody_elses_is_not_drawn_again() -> None:
    class Draws(torch.utils.data.Sampler[int]):
        drawn = 0

        def __iter__(self) -> Any:
            type(self).drawn += 1
            return iter(range(6))

        def __len__(self) -> int:
            return 6

    loader = build_loader(
        data.Items([{"x": torch.zeros(())}] * 6),
        batch_size=3,
        collate_fn=list,
        sampler=Draws(),
        drop_last=False,
        rank=0,
        world_size=1,
        options=LoaderOptions(pin_memory=False),
    )
    order = EpochOrder.of(loader)
    assert order is None or order.samples_of(0, 0, 1) is None
    assert Draws.drawn == 0
