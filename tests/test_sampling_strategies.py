"""Training in orders by length: exact resume, the reference's numbers, and updates that are means over their samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor, nn

from mainspring import Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments
from mainspring.data.orders import BudgetBatches, GroupedOrder
from mainspring.errors import OptionError
from tests.helpers import data, models

BY_LENGTH: dict[str, dict[str, Any]] = {
    "group_by_length": {"train_sampling_strategy": "group_by_length"},
    "batch_rebalance": {"train_sampling_strategy": "batch_rebalance"},
    "token_budget": {"train_sampling_strategy": "token_budget", "max_tokens_per_batch": 40},
}


class Notes(TrainerCallback):
    """Writes down the epoch after every update."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epochs.append(state.epoch)


class Counting(data.Items):
    """Whose samples carry their number."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "number": index}


class Remembering:
    """A collator that notes which samples it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, items: Any) -> dict[str, Tensor]:
        self.batches.append([item["number"] for item in items])
        return data.collate_text(items)


def trainer(folder: Path, **changes: Any) -> Trainer:
    rows, workers = changes.pop("rows", 23), changes.get("dataloader_num_workers", 0)
    if changes.get("train_sampling_strategy") == "token_budget":
        changes.setdefault("per_device_train_batch_size", 8)
    options = {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        **changes,
    }
    torch.manual_seed(3)
    return Trainer(
        models.tiny_gpt2(dropout=0.1),
        TrainingArguments(str(folder), **options),
        data_collator=data.collate_text if workers else Remembering(),
        train_dataset=Counting(data.ragged_text(rows)),
        callbacks=[Notes()],
    )


def weights(of: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in of.model.state_dict().items()}


def history(of: Trainer) -> list[dict[str, Any]]:
    times = ("runtime", "per_second", "wait_fraction")
    return [{k: v for k, v in log.items() if not any(t in k for t in times)} for log in of.state.log_history]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run of each strategy, made once."""
    made: dict[str, Trainer] = {}

    def get(strategy: str) -> Trainer:
        if strategy not in made:
            made[strategy] = trainer(tmp_path_factory.mktemp(strategy), **BY_LENGTH[strategy])
            made[strategy].train()
        return made[strategy]

    return get


@pytest.mark.parametrize("strategy", BY_LENGTH)
@pytest.mark.parametrize(("share", "workers"), [(0.1, 0), (0.34, 0), (0.5, 0), (0.9, 0), (0.2, 2), (0.67, 2)])
def test_every_place_continues_the_same_run(
    strategy: str, share: float, workers: int, whole: Any, tmp_path: Path
) -> None:
    """In the first epoch, at its end, in later ones; read in the process itself or by workers."""
    uninterrupted = whole(strategy)
    step = max(1, round(share * uninterrupted.state.max_steps))
    resumed = trainer(tmp_path, dataloader_num_workers=workers, **BY_LENGTH[strategy])
    resumed.train(resume_from_checkpoint=Path(uninterrupted.args.output_dir) / f"checkpoint-{step}")
    assert same(weights(uninterrupted), weights(resumed))
    assert history(resumed) == history(uninterrupted)


@pytest.mark.parametrize("strategy", BY_LENGTH)
def test_every_sample_is_trained_on_once_an_epoch(strategy: str, whole: Any) -> None:
    run = whole(strategy)
    batches = run.data_collator.batches
    assert len(batches) == 3 * run.plan().steps_in_epoch
    epochs = [batches[start : start + len(batches) // 3] for start in range(0, len(batches), len(batches) // 3)]
    for batch_of_epoch in epochs:
        assert sorted(number for batch in batch_of_epoch for number in batch) == list(range(23))
    assert epochs[0] != epochs[1] != epochs[2]
    assert run.state.epoch == 3
    assert run.state.global_step == run.state.max_steps


@pytest.mark.parametrize("strategy", BY_LENGTH)
@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 5},
        {"gradient_accumulation_steps": 1},
        {"max_tokens_per_batch": 25},
    ],
)
def test_an_epoch_is_gone_through_in_the_order_it_was_begun_in(
    strategy: str, changes: dict[str, Any], whole: Any, tmp_path: Path
) -> None:
    """Other sizes of batches: the rest of the epoch has the samples that were left, and the next ones all of them."""
    uninterrupted = whole(strategy)
    options = {**BY_LENGTH[strategy], **changes}
    if strategy == "token_budget":
        options.pop("per_device_train_batch_size", None)
    else:
        options.pop("max_tokens_per_batch", None)
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=Path(uninterrupted.args.output_dir) / "checkpoint-2")
    done = {number for batch in uninterrupted.data_collator.batches[:4] for number in batch}
    after = [number for batch in resumed.data_collator.batches for number in batch]
    assert sorted(after[: 23 - len(done)]) == sorted(set(range(23)) - done)
    later = after[23 - len(done) :]
    assert sorted(later[:23]) == sorted(later[23:]) == list(range(23))
    assert resumed.state.epoch == 3
    assert resumed.state.global_step == resumed.state.max_steps


def test_a_checkpoint_of_a_resumed_run_keeps_the_order_too(whole: Any, tmp_path: Path) -> None:
    """Stopped once more inside the epoch that was begun with other sizes."""
    uninterrupted = whole("token_budget")
    options = {**BY_LENGTH["token_budget"], "max_tokens_per_batch": 25}
    second = trainer(tmp_path / "second", **options)
    second.train(resume_from_checkpoint=Path(uninterrupted.args.output_dir) / "checkpoint-1")
    third = trainer(tmp_path / "third", **options)
    third.train(resume_from_checkpoint=tmp_path / "second" / "checkpoint-2")
    assert same(weights(second), weights(third))
    assert third.data_collator.batches == second.data_collator.batches[2:]


def test_other_lengths_inside_an_epoch_are_refused(whole: Any, tmp_path: Path) -> None:
    uninterrupted = whole("group_by_length")
    resumed = trainer(tmp_path, **BY_LENGTH["group_by_length"])
    resumed.train_dataset.items[3] = {"input_ids": torch.ones(20, dtype=torch.long), "labels": torch.ones(20).long()}
    checkpoint = Path(uninterrupted.args.output_dir) / "checkpoint-1"
    with pytest.raises(OptionError, match="other lengths when the checkpoint was written"):
        resumed.train(resume_from_checkpoint=checkpoint)
    again = trainer(tmp_path, ignore_data_skip=True, **BY_LENGTH["group_by_length"])
    again.train_dataset = resumed.train_dataset
    again.train(resume_from_checkpoint=checkpoint)


class Vary(Counting):
    """Whose samples are cut in every epoch but the first."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        limit = 14 if self.epoch == 0 else 4
        return {**item, "input_ids": item["input_ids"][:limit], "labels": item["labels"][:limit]}


def test_lengths_that_vary_by_epoch_are_planned_for_each_and_resumed(tmp_path: Path) -> None:
    def run(folder: Path) -> Trainer:
        made = trainer(folder, **BY_LENGTH["token_budget"])
        made.train_dataset = Vary(data.ragged_text(23))
        return made

    uninterrupted = run(tmp_path / "whole")
    uninterrupted.train()
    epochs = uninterrupted.callback_handler.callbacks[1].epochs
    assert epochs[-1] == 3
    counts = [sum(low < epoch <= low + 1 for epoch in epochs) for low in range(3)]
    assert counts[0] > counts[1]
    collated = [number for batch in uninterrupted.data_collator.batches for number in batch]
    assert [sorted(collated[low : low + 23]) for low in (0, 23, 46)] == 3 * [list(range(23))]
    for step in (counts[0] + 1, counts[0] + counts[1] + 1):
        resumed = run(tmp_path / f"resumed at {step}")
        resumed.train(resume_from_checkpoint=tmp_path / "whole" / f"checkpoint-{step}")
        assert same(weights(uninterrupted), weights(resumed))
        assert resumed.state.max_steps == uninterrupted.state.max_steps, "nothing is planned anew"
        assert history(resumed) == history(uninterrupted)


class Mean(nn.Module):
    """The mean of one parameter's errors over the samples of a batch, which it does not normalise otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.guess = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": ((self.guess - labels) ** 2).mean()}


def collate_sizes(items: Any) -> dict[str, Tensor]:
    rows = [item["input_ids"] for item in items]
    labels = torch.tensor([item["labels"] for item in items])
    return {"input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True), "labels": labels}


def mean_trainer(folder: Path, model: nn.Module | None = None, **changes: Any) -> Trainer:
    sizes = [(5 * number) % 13 + 1 for number in range(24)]
    items = [{"input_ids": torch.ones(size, dtype=torch.long), "labels": float(size)} for size in sizes]
    options = {
        "gradient_accumulation_steps": 100,
        "num_train_epochs": 1,
        "learning_rate": 0.25,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    args = TrainingArguments(str(folder), **options)
    return Trainer(model or Mean(), args, data_collator=collate_sizes, train_dataset=data.Items(items))


@pytest.mark.parametrize("strategy", ["batch_rebalance", "token_budget"])
def test_a_mean_loss_is_that_of_the_updates_samples(strategy: str, tmp_path: Path) -> None:
    """Batches of several sizes in one update over all the data: one step of gradient descent to half their mean."""
    options = {**BY_LENGTH[strategy]}
    if strategy == "batch_rebalance":
        options.update(per_device_train_batch_size=4, gradient_accumulation_steps=6)
    run = mean_trainer(tmp_path, **options)
    run.train()
    labels = torch.tensor([item["labels"] for item in run.train_dataset.items])
    assert run.state.global_step == 1
    torch.testing.assert_close(run.model.guess.detach(), labels.mean() / 2)
    assert run.state.log_history[0]["loss"] == pytest.approx(float((labels**2).mean()))


class Tagger(nn.Module):
    """A mean over label tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Embedding(models.VOCABULARY, models.VOCABULARY)
        nn.init.zeros_(self.scores.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.scores(input_ids).flatten(0, 1), labels.flatten())}


@pytest.mark.parametrize("model", [Tagger, models.tiny_gpt2])
def test_a_token_loss_is_that_of_the_updates_tokens(model: Any, tmp_path: Path) -> None:
    """Normalised by the model or not: all samples in one batch, or in batches of several sizes, move the model alike."""
    moved = []
    for options in (
        {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 1},
        BY_LENGTH["token_budget"],
    ):
        torch.manual_seed(0)
        run = mean_trainer(tmp_path, model(), **options)
        run.data_collator, run.train_dataset = data.collate_text, data.Items(data.ragged_text(24))
        run.train()
        assert run.state.global_step == 1
        moved.append((run.state.log_history[0]["loss"], weights(run)))
    assert moved[0][0] == pytest.approx(moved[1][0], rel=1e-5)
    torch.testing.assert_close(moved[0][1], moved[1][1], atol=2e-6, rtol=2e-4)


def test_the_plan_counts_batches_of_tokens(tmp_path: Path) -> None:
    run = mean_trainer(tmp_path, gradient_accumulation_steps=2, num_train_epochs=2.0, **BY_LENGTH["token_budget"])
    plan = run.plan()
    batches = len(run.get_train_dataloader())
    updates = -(-batches // 2)
    assert (plan.steps_in_epoch, plan.num_update_steps_per_epoch, plan.max_steps) == (batches, updates, 2 * updates)
    assert plan.total_train_batch_size == round(24 / updates)
    assert plan.num_examples == 24
    output = run.train()
    assert output.global_step == 2 * updates


# ---- the options ----


def sampler_of(tmp_path: Path, **options: Any) -> Any:
    return mean_trainer(tmp_path, **options)._get_train_sampler()


def test_the_older_spelling_still_groups(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="group_by_length"):
        sampler = sampler_of(tmp_path, group_by_length=True)
    assert isinstance(sampler, GroupedOrder)


def test_the_column_of_lengths_is_read_though_the_model_does_not_take_it(tmp_path: Path) -> None:
    columns = {"input_ids": [[1]] * 6, "labels": [0.0] * 6, "tokens": [1, 2, 3, 4, 5, 6]}
    run = mean_trainer(tmp_path, length_column_name="tokens", **BY_LENGTH["token_budget"])
    run.train_dataset = datasets.Dataset.from_dict(columns)
    loader = run.get_train_dataloader()
    order = loader.batch_sampler.sampler
    assert isinstance(order, BudgetBatches)
    assert order.lengths.of(0).tolist() == [1, 2, 3, 4, 5, 6]
    assert "tokens" not in loader.dataset.column_names


@pytest.mark.parametrize("strategy", BY_LENGTH)
def test_data_seed_draws_the_order(strategy: str, tmp_path: Path) -> None:
    def order(**seeds: int) -> list[Any]:
        return list(
            sampler_of(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2, **seeds, **options)
        )

    options = BY_LENGTH[strategy]
    assert order(seed=1, data_seed=5) == order(seed=2, data_seed=5) == order(seed=5)
    assert order(seed=5) != order(seed=6)


def test_sortish_sampler_groups_by_length(tmp_path: Path) -> None:
    run = mean_trainer(tmp_path)
    run.args = Seq2SeqTrainingArguments(str(tmp_path), sortish_sampler=True, use_cpu=True)
    assert isinstance(run._get_train_sampler(), GroupedOrder)
    with pytest.raises(OptionError, match="sortish_sampler=True.*leave one of the two out"):
        Seq2SeqTrainingArguments(str(tmp_path), sortish_sampler=True, train_sampling_strategy="sequential")
    with pytest.warns(UserWarning, match="sortish_sampler=True: has no effect.*compat is '5'"):
        Seq2SeqTrainingArguments(str(tmp_path), sortish_sampler=True, compat="5")


def test_batches_that_differ_cannot_be_split(tmp_path: Path) -> None:
    config = {"split_batches": True}
    run = mean_trainer(tmp_path, accelerator_config=config, **BY_LENGTH["token_budget"])
    with pytest.raises(ValueError, match="split_batches=True needs batches of one size"):
        run.get_train_dataloader()


def test_a_stream_has_no_order_by_length(tmp_path: Path) -> None:
    run = mean_trainer(tmp_path, max_steps=1, num_train_epochs=3.0, **BY_LENGTH["token_budget"])
    run.train_dataset = data.Stream(run.train_dataset.items)
    with pytest.raises(OptionError, match="train_sampling_strategy='token_budget': train_dataset is a stream"):
        run.get_train_dataloader()


def test_predictions_come_in_the_order_of_the_data(tmp_path: Path) -> None:
    run = trainer(tmp_path, **BY_LENGTH["group_by_length"])
    labels = run.predict(Counting(data.ragged_text(9))).label_ids
    expected = data.collate_text(data.ragged_text(9))["labels"].numpy()
    assert (labels == expected).all()


def test_lengths_are_measured_with_a_bar_that_can_be_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bool] = []

    def bar(items: Any, *, disable: bool, **how: Any) -> Any:
        shown.append(not disable)
        return items

    monkeypatch.setattr("mainspring.data.lengths.tqdm", bar)
    for off in (True, False):
        run = mean_trainer(tmp_path, disable_tqdm=off, **BY_LENGTH["group_by_length"])
        run.get_train_dataloader()
        run.get_train_dataloader()
    assert shown == [False, True]


def test_workers_that_read_an_epoch_ahead_do_not_change_its_length(tmp_path: Path) -> None:
    """Lengths vary by epoch, and all batches are asked for before the first is trained on."""
    steps = []
    for workers in (0, 1):
        ahead = {"dataloader_num_workers": workers, **({"dataloader_prefetch_factor": 64} if workers else {})}
        made = trainer(tmp_path / str(workers), **{**BY_LENGTH["token_budget"], **ahead})
        made.train_dataset = Vary(data.ragged_text(23))
        made.train()
        steps.append(made.state.global_step)
    assert steps[0] == steps[1]
