"""Whatever the sizes: every sample once, on one process or several, from any place on, and in any split of a batch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.data import BatchSampler, IterableDataset, SequentialSampler

from mainspring import Trainer, TrainingArguments
from mainspring.data.loaders import LoaderOptions, build_loader
from mainspring.data.position import batches_from
from mainspring.data.random_stream import DataStream
from mainspring.data.samplers import EpochRandomSampler
from mainspring.data.together import AllShares
from tests.helpers import data, loaders, models

SIZES = {"count": st.integers(1, 40), "batch": st.integers(1, 7), "world": st.integers(1, 4)}


class Rows(IterableDataset[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


def shares(dataset: Any, batch: int, world: int, skip: int = 0, **changes: Any) -> list[list[list[int]]]:
    """The batches of each process in epoch 1."""
    built = []
    for rank in range(world):
        map_style = not isinstance(dataset, IterableDataset)
        arguments = {
            "collate_fn": list,
            "sampler": EpochRandomSampler(len(dataset), seed=1) if map_style else None,
            "drop_last": False,
            "options": LoaderOptions(),
            "stream": DataStream(3, rank, world),
            **changes,
        }
        loader = build_loader(dataset, batch_size=batch, rank=rank, world_size=world, **arguments)
        built.append(list(batches_from(loader, 1, skip)))
    return built


def flat(parts: Any) -> list[int]:
    return [sample for batches in parts for one in batches for sample in one]


@pytest.mark.parametrize("make", [range, Rows])
@given(**SIZES)
def test_every_sample_once(make: Any, count: int, batch: int, world: int) -> None:
    parts = shares(make(count), batch, world, even=False)
    assert sorted(flat(parts)) == list(range(count))
    assert all(len(one) == batch for batches in parts for one in batches[:-1])


@pytest.mark.parametrize("make", [range, Rows])
@given(**SIZES)
def test_filled_up_all_take_as_many_full_batches(make: Any, count: int, batch: int, world: int) -> None:
    parts = shares(make(count), batch, world)
    assert set(flat(parts)) == set(range(count))
    assert len({len(batches) for batches in parts}) == 1
    if world > 1:
        assert len(flat(parts)) - count < batch * world
        assert all(len(one) == batch for batches in parts for one in batches)


@pytest.mark.parametrize("make", [range, Rows])
@given(**SIZES)
def test_drop_last_leaves_out_less_than_a_round(make: Any, count: int, batch: int, world: int) -> None:
    parts = shares(make(count), batch, world, drop_last=True)
    given_out = flat(parts)
    assert len(given_out) == len(set(given_out)) == count // (batch * world) * batch * world
    assert all(len(one) == batch for batches in parts for one in batches)


@pytest.mark.parametrize("make", [range, Rows])
@given(**SIZES, skip=st.integers(0, 9))
def test_from_any_place_on(make: Any, count: int, batch: int, world: int, skip: int) -> None:
    whole = shares(make(count), batch, world)
    assert shares(make(count), batch, world, skip) == [batches[skip:] for batches in whole]


@given(**SIZES)
def test_a_split_batch_is_one_of_that_size_on_one_process(count: int, batch: int, world: int) -> None:
    """Indices and batches of them, whichever process takes which part."""
    together = batch * world
    alone = shares(range(count), together, 1, sampler=SequentialSampler(range(count)))[0]
    for sampler in (SequentialSampler(range(count)), BatchSampler(range(count), together, drop_last=False)):
        parts = shares(range(count), together, world, sampler=sampler, split=True, even=False)
        rounds = [
            [sample for batches in parts for one in batches[number : number + 1] for sample in one]
            for number in range(max(map(len, parts)))
        ]
        assert rounds == alone


@given(**SIZES, even=st.booleans(), skip=st.integers(0, 5))
def test_one_that_reads_for_all_has_their_batches_round_by_round(
    count: int, batch: int, world: int, even: bool, skip: int
) -> None:
    each = shares(range(count), batch, world, even=even)
    rounds = [one for number in range(max(map(len, each))) for batches in each for one in batches[number : number + 1]]
    order = EpochRandomSampler(count, seed=1)
    order.set_epoch(1)
    together = AllShares(order, batch, False, 0, world, even)
    assert len(together) == len(rounds)
    together.skip(skip)
    assert list(together) == rounds[skip:]


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 20),
    batch=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    workers=st.sampled_from([0, 0, 1]),
    stream=st.booleans(),
)
def test_an_epoch_of_training_takes_every_sample_once(
    count: int, batch: int, accumulation: int, workers: int, stream: bool
) -> None:
    rows = loaders.Stream(count) if stream else loaders.Numbers(count)
    updates = math.ceil(math.ceil(count / batch) / accumulation)
    with tempfile.TemporaryDirectory() as folder:
        run = loaders.trainer(
            Path(folder),
            rows,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            dataloader_num_workers=workers,
            max_steps=2 * updates,
            save_strategy="no",
            save_steps=500,
        )
        run.train()
    taken = [sample for one in run.seen for sample in one]
    assert run.state.global_step == 2 * updates
    assert sorted(taken[:count]) == sorted(taken[count:]) == list(range(count))


# ---- how a global batch is split ----

SPLITS = [(12, 1), (6, 2), (4, 3), (3, 4), (2, 6), (1, 12)]
"""Samples of a micro-batch, and micro-batches of an update: always 12 samples."""


def token_loss(rows: int, seed: int) -> dict[str, Any]:
    """A causal language model on texts of different lengths: a mean over the tokens of the update."""
    texts = data.Items(data.ragged_text(rows, seed=seed))
    return {"model": models.tiny_gpt2(), "data_collator": data.collate_text, "train_dataset": texts}


def sample_loss(rows: int, seed: int) -> dict[str, Any]:
    """A plain module with a mean over the samples of its batch."""
    return {"model": models.Regressor(), "train_dataset": data.Items(data.points(rows, seed=seed))}


@pytest.mark.slow
@pytest.mark.parametrize("task", [token_loss, sample_loss])
@settings(max_examples=6, deadline=None)
@given(updates=st.integers(1, 2), seed=st.integers(0, 1000), workers=st.sampled_from([0, 0, 1]))
def test_however_a_batch_is_split_it_is_the_same_update(task: Any, updates: int, seed: int, workers: int) -> None:
    """Logged loss, gradient norm and weights, up to rounding."""
    found = [_train(task, updates, seed, workers, *split) for split in SPLITS]
    logs, weights = found[0]
    for other_logs, other_weights in found[1:]:
        assert other_logs == pytest.approx(logs, rel=2e-5, abs=1e-7)
        torch.testing.assert_close(other_weights, weights, rtol=2e-5, atol=1e-6)


def _train(task: Any, updates: int, seed: int, workers: int, batch: int, accumulation: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(3)
        args = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            dataloader_num_workers=workers,
            max_steps=updates,
            learning_rate=0.05,
            optim="sgd",
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        run = Trainer(args=args, **task(12 * updates, seed))
        run.train()
    logs = [log[name] for log in run.state.log_history if "loss" in log for name in ("loss", "grad_norm")]
    return logs, torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
