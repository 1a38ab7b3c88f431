"""Random numbers of data sets and collators are the data's own: the same for any number of workers, and at any place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mainspring import Trainer, TrainingArguments
from tests.faults.runs import Classifier, Noisy, masking
from tests.helpers.runs import same, weights


def trainer(folder: Path, **options: Any) -> Trainer:
    torch.manual_seed(5)
    return Trainer(
        Classifier(),
        TrainingArguments(
            str(folder),
            **{
                "per_device_train_batch_size": 4,
                "num_train_epochs": 2,
                "save_strategy": "no",
                "use_cpu": True,
                "disable_tqdm": True,
                "remove_unused_columns": False,
                **options,
            },
        ),
        data_collator=masking,
        train_dataset=Noisy(22, seed=1),
        eval_dataset=Noisy(9, seed=2),
    )


def trained(folder: Path, **options: Any) -> Trainer:
    run = trainer(folder, **options)
    run.train()
    return run


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int, tmp_path: Path) -> None:
    alone, shared = trained(tmp_path), trained(tmp_path, dataloader_num_workers=workers)
    assert same(weights(alone), weights(shared))
    assert alone.evaluate()["eval_loss"] == shared.evaluate()["eval_loss"]


def test_another_seed_is_other_data(tmp_path: Path) -> None:
    plain, other = trained(tmp_path), trained(tmp_path, data_seed=7, train_sampling_strategy="sequential")
    same_order = trained(tmp_path, train_sampling_strategy="sequential")
    assert not same(weights(plain), weights(same_order))
    assert not same(weights(other), weights(same_order)), "in the same order, and augmented otherwise"


def test_evaluations_are_drawn_alike_each_time(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.evaluate()["eval_loss"] == run.evaluate()["eval_loss"]


@pytest.mark.parametrize("compat", ["5", "4.37"])
def test_in_the_references_the_workers_draw(compat: str, tmp_path: Path) -> None:
    alone = trained(tmp_path, compat=compat)
    shared = trained(tmp_path, compat=compat, dataloader_num_workers=2)
    assert not same(weights(alone), weights(shared))
