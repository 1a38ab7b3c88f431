"""Training on packed rows: the losses and gradients of padded samples, every sample once, resumed exactly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mainspring import DataCollatorWithFlattening, Trainer, TrainingArguments
from mainspring.data.packing import PackedSamples, PackingCollator, layout_for
from mainspring.data.packing.columns import concatenated
from mainspring.data.position import set_epoch
from mainspring.data.samplers import DealtBatches
from mainspring.errors import OptionError
from tests.data.packing.models import KEEPING_APART, Plain, gpt2, llama
from tests.helpers import data, models

TOLERANCE = {"rtol": 1e-5, "atol": 1e-7}
"""Of fp32: the same sums in another order. The gradients are of the size of 1e-2."""


def trainer(folder: Path, model: Any = None, rows: Any = 40, **options: Any) -> Trainer:
    samples = data.ragged_text(rows) if isinstance(rows, int) else rows
    defaults: dict[str, Any] = {
        "pack_sequences": True,
        "per_device_train_batch_size": 2,
        "logging_steps": 3,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    collator = options.pop("data_collator", None)
    args = TrainingArguments(str(folder), **{**defaults, **options})
    dataset = data.Items(samples) if isinstance(samples, list) else samples
    return Trainer(gpt2() if model is None else model, args, train_dataset=dataset, data_collator=collator)


def timeless(of: Trainer) -> list[dict[str, Any]]:
    times = ("runtime", "second", "wait_fraction")
    return [{k: v for k, v in log.items() if not any(t in k for t in times)} for log in of.state.log_history]


def weights(of: Trainer) -> list[Tensor]:
    return [value.clone() for value in of.model.state_dict().values()]


# ---- the loss ----


def gradients(model: Any, batch: Any) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    loss = model(**batch)["loss"]
    loss.backward()
    return float(loss.detach()), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("kind", KEEPING_APART)
def test_packed_and_padded_samples_give_one_loss_and_one_gradient(kind: str) -> None:
    model = KEEPING_APART[kind]()
    samples = data.ragged_text(9, seed=3)
    padded = gradients(model, data.collate_text(samples))
    for rows in ([samples], [samples[:4], samples[4:5], samples[5:]]):
        packed = gradients(model, PackingCollator(concatenated, layout_for(model))(rows))
        torch.testing.assert_close(packed, padded, **TOLERANCE)


@pytest.mark.parametrize("kind", [gpt2, llama])
def test_so_do_flattened_ones(kind: Any) -> None:
    """By a model that sees in the positions where samples begin."""
    model, samples = kind(), data.ragged_text(9, seed=3)
    model.config.use_cache = False  # as a trainer sets it: with a cache the positions are not looked at
    flattened = gradients(model, DataCollatorWithFlattening()(samples))
    torch.testing.assert_close(flattened, gradients(model, data.collate_text(samples)), **TOLERANCE)


@pytest.mark.parametrize("kind", [gpt2, llama, Plain])
def test_an_update_on_packed_rows_is_the_one_on_padded_samples(kind: Any, tmp_path: Path) -> None:
    """Loss, norm of the gradient and weights of an update that has all samples."""
    whole = {"optim": "sgd", "logging_steps": 1, "num_train_epochs": 1}
    packed = trainer(tmp_path / "packed", kind(), 24, per_device_train_batch_size=24, **whole)
    padded = trainer(
        tmp_path / "padded",
        kind(),
        24,
        pack_sequences=False,
        data_collator=data.collate_text,
        per_device_train_batch_size=24,
        **whole,
    )
    for run in (packed, padded):
        run.train()
        assert run.state.global_step == 1
    keys = ("loss", "grad_norm")
    first, second = ([run.state.log_history[0][key] for key in keys] for run in (packed, padded))
    assert first == pytest.approx(second, rel=1e-5)
    torch.testing.assert_close(weights(packed), weights(padded), **TOLERANCE)


@pytest.mark.parametrize("kind", [gpt2, Plain])
@settings(max_examples=6, deadline=None)
@given(rows=st.integers(1, 4), pack_length=st.integers(14, 40), seed=st.integers(0, 99))
def test_the_split_of_an_update_into_rows_does_not_change_it(
    kind: Any, rows: int, pack_length: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However many rows a micro-batch has, and however long they are; also where the loss is a mean over them."""
    folder, samples = tmp_path_factory.mktemp("runs"), data.ragged_text(12, seed=seed)
    runs = []
    for number, (size, length) in enumerate([(24, 100), (rows, pack_length)]):
        options = {"gradient_accumulation_steps": 24, "num_train_epochs": 1, "optim": "sgd", "logging_steps": 1}
        run = trainer(
            folder / str(number), kind(), samples, per_device_train_batch_size=size, pack_length=length, **options
        )
        run.train()
        assert run.state.global_step == 1
        runs.append(run)
    assert runs[0].state.log_history[0]["loss"] == pytest.approx(runs[1].state.log_history[0]["loss"], rel=1e-5)
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), **TOLERANCE)


# ---- the samples ----


def numbered(count: int) -> list[dict[str, list[int]]]:
    """Samples that tell their number by their first token."""
    return [{"input_ids": [number, *[40] * (number % 7)]} for number in range(count)]


def read(loader: Any) -> list[int]:
    """The samples of an epoch, by their first tokens."""
    found = []
    for batch in loader:
        starts = (batch["position_ids"] == 0) & (batch["attention_mask"].sum(-1)[:, 0] == 1)
        found += [int(token) for token in batch["input_ids"][starts]]
    return found


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_epoch_has_every_sample_once(workers: int, tmp_path: Path) -> None:
    run = trainer(tmp_path, rows=numbered(38), dataloader_num_workers=workers)
    loader = run.get_train_dataloader()
    batches = []
    for epoch in range(2):
        set_epoch(loader, epoch)
        found = [token for token in read(loader) if token]  # padding is zero, and so is the first sample's token
        assert sorted(found) == list(range(1, 38))
        batches.append(found)
    assert batches[0] != batches[1]


def test_the_plan_counts_rows_and_the_speed_counts_samples(tmp_path: Path) -> None:
    plan = trainer(tmp_path, rows=40, num_train_epochs=2).plan()
    assert (plan.num_examples, plan.num_train_samples) == (40, 80)
    assert plan.steps_in_epoch < 15
    limited = trainer(tmp_path, rows=40, max_steps=plan.steps_in_epoch * 3).plan()
    assert limited.num_train_samples == 120


def test_processes_share_out_the_rows(tmp_path: Path) -> None:
    order = trainer(tmp_path).get_train_dataloader().batch_sampler.sampler
    order.set_epoch(0)
    rows = list(order)
    shares = []
    for rank in range(2):
        order.set_epoch(0)
        shares.append(list(itertools.chain(*DealtBatches(order, 3, rank=rank, world_size=2))))
    assert {*shares[0]} | {*shares[1]} == {*rows}
    assert len(shares[0]) == len(shares[1]) <= len(rows) / 2 + 3


@pytest.mark.parametrize("transformed", [False, True])
def test_tables_and_their_columns_are_packed(transformed: bool, tmp_path: Path) -> None:
    """What the model does not take is left out, and a column of lengths read."""
    rows = [{"input_ids": one["input_ids"].tolist(), "text": "x"} for one in data.ragged_text(20)]
    table = datasets.Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in rows])
    table = table.with_transform(lambda batch: batch) if transformed else table
    batches = list(trainer(tmp_path, rows=table).get_train_dataloader())
    assert sum(batch.tokens for batch in batches) == sum(len(row["input_ids"]) for row in rows)
    assert batches[0].keys() == {"input_ids", "labels", "position_ids", "attention_mask"}


def test_a_column_of_other_lengths_is_refused(tmp_path: Path) -> None:
    """As one that counts letters: rows planned by it would be too short, or too long."""
    rows = [{**one, "length": 3 * len(one["input_ids"])} for one in data.ragged_text(20)]
    with pytest.raises(OptionError, match="length_column_name='length': it holds .* for sample 0"):
        trainer(tmp_path, rows=rows).train()


def test_workers_give_the_batches_that_one_process_gives(tmp_path: Path) -> None:
    loaders = [trainer(tmp_path, dataloader_num_workers=workers).get_train_dataloader() for workers in (0, 1)]
    for alone, apart in zip(*loaders, strict=True):
        assert alone.tokens == apart.tokens
        assert alone.keys() == apart.keys()
        assert all(torch.equal(alone[name], apart[name]) for name in alone)


# ---- resuming ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    run = trainer(tmp_path_factory.mktemp("whole"), models.tiny_gpt2(0.1), save_strategy="steps", save_steps=1)
    run.train()
    return run


def resumed(whole: Trainer, folder: Path, step: int, **options: Any) -> Trainer:
    run = trainer(folder, models.tiny_gpt2(0.1), **{"save_strategy": "steps", "save_steps": 100, **options})
    run.train(resume_from_checkpoint=Path(whole.args.output_dir) / f"checkpoint-{step}")
    return run


@pytest.mark.parametrize("step", [1, 5, 13, 14, 19, 27])
def test_every_checkpoint_continues_the_same_run(step: int, whole: Trainer, tmp_path: Path) -> None:
    """With dropout, in the middle of an epoch and of a logging window, the padding in the logs included."""
    assert whole.plan().steps_in_epoch == 14
    run = resumed(whole, tmp_path, step)
    assert all(torch.equal(*pair) for pair in zip(weights(run), weights(whole), strict=True))
    assert timeless(run) == timeless(whole)
    assert all("padding_fraction" in log for log in timeless(run) if "loss" in log)


def test_another_batch_size_goes_on_with_the_next_row(whole: Trainer, tmp_path: Path) -> None:
    """Five updates of two rows were made: ten rows of the order are left out, however many a batch has now."""
    run = resumed(whole, tmp_path, 5, per_device_train_batch_size=5, max_steps=6)
    order = list(trainer(tmp_path).get_train_dataloader().batch_sampler.sampler)
    assert run.train_dataset.reads[-len([*itertools.chain(*order[10:15])]) :] == [*itertools.chain(*order[10:15])]


@pytest.mark.parametrize("options", [{"pack_sequences": False}, {"data_seed": 5}])
def test_other_rows_are_refused_inside_an_epoch(options: dict[str, Any], whole: Trainer, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))}=.*in the checkpoint"):
        resumed(whole, tmp_path, 5, **options)


def test_rows_of_another_length_begin_with_the_next_epoch(whole: Trainer, tmp_path: Path) -> None:
    """The epoch that was begun is gone through to its end as it was begun: each of its samples once."""
    run = resumed(whole, tmp_path, 5, pack_length=40)
    first, second, third = (run.train_dataset.reads[start:end] for start, end in ((-120, -80), (-80, -40), (-40, None)))
    order = list(trainer(tmp_path).get_train_dataloader().batch_sampler.sampler)
    assert first[-len([*itertools.chain(*order[10:])]) :] == [*itertools.chain(*order[10:])]
    assert sorted(second) == sorted(third) == list(range(40))
    assert run.state.global_step < whole.state.global_step


# ---- what is refused ----


def test_a_stream_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, rows=data.Stream(data.ragged_text(8)), max_steps=2)
    with pytest.raises(OptionError, match="pack_sequences=True: train_dataset is a stream"):
        run.train()


def test_an_order_of_ones_own_is_refused(tmp_path: Path) -> None:
    class Own(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            raise AssertionError("not asked")

    args = TrainingArguments(str(tmp_path), pack_sequences=True, use_cpu=True)
    with pytest.raises(OptionError, match="pack_sequences=True: _get_train_sampler is overridden"):
        Own(gpt2(), args, train_dataset=data.Items(data.ragged_text(8))).train()


def test_a_model_that_cannot_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="pack_sequences=True: Plain lets the samples of a row see each other"):
        trainer(tmp_path, Plain(leaks=True)).train()


def test_evaluation_is_not_packed(tmp_path: Path) -> None:
    run = trainer(tmp_path, data_collator=data.collate_text)
    loader = run.get_eval_dataloader(data.Items(data.ragged_text(4)))
    assert not isinstance(loader.dataset, PackedSamples)
    assert next(iter(loader))["attention_mask"].dim() == 2


def test_tokens_without_padding_are_counted_once(tmp_path: Path) -> None:
    """The mask of a packed row has an entry for every two places."""
    samples = data.ragged_text(12)
    run = trainer(tmp_path, rows=samples, num_train_epochs=1, include_num_input_tokens_seen="non_padding")
    run.train()
    assert run.state.num_input_tokens_seen == sum(len(sample["input_ids"]) for sample in samples)
