"""Train and evaluate on this process of any number of them: the same work in each world, and data that ends unevenly.

Run in one process, :func:`collect` gives what the others are compared with.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mainspring import Trainer, TrainerCallback, TrainingArguments

WORDS = 12
GLOBAL = 8
"""Samples of an update over all processes."""


# ---- the same work in each world ----


class Tagger(nn.Module):
    """Predicts each token's label: a mean over the labels of its batch, or over as many as it is told."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding, self.head = nn.Embedding(WORDS, 6), nn.Linear(6, WORDS)

    def forward(
        self, tokens: Tensor, index: Tensor, labels: Tensor | None = None, num_items_in_batch: Tensor | None = None
    ) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.embedding(tokens)))
        if labels is None:
            return {"logits": logits}
        return {"loss": summed(logits, labels) / counted(labels, num_items_in_batch), "logits": logits}


class Plain(Tagger):
    """One whose loss is always a mean over its batch."""

    def forward(self, tokens: Tensor, index: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward(tokens, index, labels)


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def counted(labels: Tensor, known: Any) -> Any:
    return (labels != -100).sum() if known is None else known


def custom_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Twice the usual one, normalised by what it is given."""
    return 2 * summed(outputs["logits"], labels) / counted(labels, num_items_in_batch)


def texts(count: int) -> list[dict[str, Any]]:
    """Texts of very different lengths, some of whose tokens have no label."""
    draw = random.Random(3)
    made = []
    for index in range(count):
        tokens = [draw.randrange(WORDS) for _ in range(draw.randint(1, 9))]
        labels = [-100 if place and draw.random() < 0.3 else (token + 1) % WORDS for place, token in enumerate(tokens)]
        made.append({"tokens": tokens, "labels": labels, "index": index})
    return made


def padded(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
    longest = max(len(sample["tokens"]) for sample in samples)
    batch = {
        name: torch.tensor([sample[name] + [fill] * (longest - len(sample[name])) for sample in samples])
        for name, fill in {"tokens": 0, "labels": -100}.items()
    }
    return {**batch, "index": torch.tensor([sample["index"] for sample in samples])}


class Listed(Dataset[Any]):
    """Map-style data."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Streamed(IterableDataset[Any]):
    """The same without a length; where it `divides_itself`, `items` are this process's own."""

    def __init__(self, items: Sequence[Any], divides_itself: bool = False) -> None:
        self.items = list(items)
        self.divides_itself = divides_itself

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Noting(Trainer):
    """Notes the samples of each micro-batch, update by update, and how often processes tell each other what they have."""

    updates: list[list[list[int]]]
    exchanges = 0

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        exchange = self._engine.each

        def each(numbers: Sequence[int]) -> list[list[int]]:
            self.exchanges += 1
            return exchange(numbers)

        self._engine.each = each  # type: ignore[method-assign]

    def _log_window(self, *args: Any) -> None:
        """Logs have exchanges of their own, which are not of data."""
        before = self.exchanges
        super()._log_window(*args)
        self.exchanges = before

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        assert type(model).__name__ == (
            "DistributedDataParallel" if self.args.world_size > 1 else type(self.model).__name__
        )
        while len(self.updates) <= self.state.global_step:
            self.updates.append([])
        if not self._engine.is_idle:
            self.updates[self.state.global_step].append(inputs["index"].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


class OwnLoss(Noting):
    """A loss of the subclass's own, which knows nothing of updates."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss = summed(outputs["logits"], inputs["labels"]) / counted(inputs["labels"], None)
        return (loss, outputs) if return_outputs else loss


class OwnReading(Noting):
    """It reads its micro-batches itself, and knows nothing of other processes."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)], None


@dataclass(frozen=True)
class Same:
    """Work that every world does alike.

    Attributes:
        count: Samples.
        accumulation: Micro-batches of an update.
        model, kind, loss: What is trained, by what, and with which `compute_loss_func`.
        stream: Whether the data has no length.
        options: Of the training.
    """

    count: int = 40
    accumulation: int = 1
    model: Callable[[], nn.Module] = Tagger
    kind: type[Noting] = Noting
    loss: Any = None
    stream: bool = False
    options: dict[str, Any] = field(default_factory=dict)


NOT_FILLED_UP = {"accelerator_config": {"even_batches": False}}
SHORT = 37
"""Samples of which the last update has five: with four processes, one of them has none."""

SAME: dict[str, Same] = {
    "tokens": Same(),
    "accumulated": Same(accumulation=2),
    "mean losses": Same(model=Plain, accumulation=2),
    "custom loss": Same(loss=custom_loss, accumulation=2),
    "own loss": Same(kind=OwnLoss, accumulation=2),
    "adamw, clipped": Same(options={"optim": "adamw_torch", "max_grad_norm": 0.1}),
    "bf16": Same(options={"bf16": True}),
    "stream": Same(stream=True),
    "short": Same(SHORT, options=NOT_FILLED_UP),
    "short, accumulated": Same(SHORT, 2, options=NOT_FILLED_UP),
    "short, mean losses": Same(SHORT, 2, model=Plain, options=NOT_FILLED_UP),
    "short, custom loss": Same(SHORT, 2, loss=custom_loss, options=NOT_FILLED_UP),
    "short, own loss": Same(SHORT, kind=OwnLoss, options=NOT_FILLED_UP),
    "short, own reading": Same(SHORT, kind=OwnReading, model=Plain, options=NOT_FILLED_UP),
    "short stream": Same(SHORT, stream=True, options=NOT_FILLED_UP),
    "short, one reads": Same(SHORT, options={"accelerator_config": {"even_batches": False, "dispatch_batches": True}}),
    "short, in workers": Same(SHORT, options={**NOT_FILLED_UP, "dataloader_num_workers": 1}),
    "short, by process": Same(SHORT, options={**NOT_FILLED_UP, "average_tokens_across_devices": False}),
    "by process": Same(options={"average_tokens_across_devices": False}),
}


class StopAfter(TrainerCallback):
    """Ends the training after some epochs: streams do not say how many updates these are."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.done = 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done += 1
        control.should_training_stop |= self.done >= self.epochs


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given = {"optim": "sgd", "learning_rate": 0.3, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, **options}
    return TrainingArguments(
        str(folder),
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        **given,
    )


def outcome(trainer: Any) -> dict[str, Any]:
    logs = [log for log in trainer.state.log_history if "loss" in log]
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    return {
        "updates": trainer.updates,
        "losses": [log["loss"] for log in logs],
        "norms": [log["grad_norm"] for log in logs],
        "weights": weights.tolist(),
        "samples": trainer._progress.samples,
        "world": trainer.args.world_size,
        "exchanges": trainer.exchanges,
    }


def same_work(case: Same, folder: Path, world: int) -> dict[str, Any]:
    """Two epochs in updates of `GLOBAL` samples."""
    epochs = {"max_steps": 1000} if case.stream else {"num_train_epochs": 2}
    args = arguments(
        folder,
        per_device_train_batch_size=GLOBAL // case.accumulation // world,
        gradient_accumulation_steps=case.accumulation,
        **epochs,
        **case.options,
    )
    rows = Streamed(texts(case.count)) if case.stream else Listed(texts(case.count))
    trainer = case.kind(
        case.model(),
        args,
        data_collator=padded,
        train_dataset=rows,
        compute_loss_func=case.loss,
        callbacks=[StopAfter(2)],
    )
    trainer.updates = []
    trainer.train()
    return outcome(trainer)


# ---- data of any kind and size ----


class Level(nn.Module):
    """One number, drawn to the mean of the samples: after each update it says exactly which they were."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, index: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.weight - index).square().mean() / 2, "levels": index.double()}


def numbered(rows: list[Any]) -> dict[str, Tensor]:
    return {"index": torch.tensor([int(row["index"]) for row in rows])}


def numbers(start: int, count: int) -> list[dict[str, int]]:
    return [{"index": index} for index in range(start, start + count)]


@dataclass(frozen=True)
class Drawn:
    """One configuration.

    Attributes:
        kind: Of the data and its loader, see `KINDS`.
        sizes: Samples of each process or shard; of shared data their sum counts.
        batch, accumulation, workers: As in the options.
        drop_last, even: What becomes of a last round that is not full.
    """

    kind: str
    sizes: tuple[int, ...]
    batch: int
    accumulation: int
    workers: int
    drop_last: bool
    even: bool

    @property
    def settings(self) -> dict[str, Any]:
        reader = {"dispatched": True, "dispatched stream": True, "shards": False}.get(self.kind)
        return {"even_batches": self.even, "dispatch_batches": reader}


SHARED = ("map", "dispatched", "stream", "dispatched stream", "prepared")
"""Kinds of which all processes divide what they have together."""

APART = ("shards", "divided stream", "own loader", "own iterable")
"""Kinds of which each process has its own."""

KINDS = (*SHARED, *APART)


def drawn(world: int, each: int = 4) -> list[Drawn]:
    """Some configurations of every kind for a number of processes, always the same ones."""
    draw, found = random.Random(world), []
    for kind in KINDS:
        for _ in range(each):
            most = draw.choice([2, 7, 13])
            parts = world + draw.randint(0, 2) if kind == "shards" else world
            sizes = tuple(draw.choice([0, draw.randint(0, most), most]) for _ in range(parts))
            found.append(
                Drawn(
                    kind,
                    sizes if sum(sizes) else (1, *sizes[1:]),
                    batch=draw.randint(1, 4),
                    accumulation=draw.randint(1, 3),
                    workers=int(draw.random() < 0.15),
                    drop_last=draw.random() < 0.25,
                    even=draw.random() < 0.4,
                )
            )
    return [one for one in found if _has_a_batch(one, world)]


def _has_a_batch(one: Drawn, world: int) -> bool:
    least = one.batch if one.kind in APART else one.batch * world
    sizes = [sum(one.sizes)] if one.kind in SHARED else one.sizes
    return not one.drop_last or max(sizes) >= least


def own_part(one: Drawn, rank: int) -> list[dict[str, int]]:
    return numbers(sum(one.sizes[:rank]), one.sizes[rank])


def shards_of(sizes: tuple[int, ...]) -> Any:
    """A `datasets` stream of one shard per size."""

    def generate(parts: list[tuple[int, int]]) -> Iterator[dict[str, int]]:
        for start, size in parts:
            yield from numbers(start, size)

    parts = [(sum(sizes[:place]), size) for place, size in enumerate(sizes)]
    return datasets.IterableDataset.from_generator(generate, gen_kwargs={"parts": parts})


class Batches:
    """A loader without a length that is no DataLoader."""

    def __init__(self, rows: list[Any], one: Drawn) -> None:
        self.rows, self.one = rows, one

    def __iter__(self) -> Iterator[Any]:
        size = self.one.batch
        for start in range(0, len(self.rows), size):
            if start + size <= len(self.rows) or not self.one.drop_last:
                yield numbered(self.rows[start : start + size])


def rows_of(one: Drawn, rank: int) -> Any:
    """The data set of a configuration."""
    together = numbers(0, sum(one.sizes))
    if one.kind == "shards":
        return shards_of(one.sizes)
    if one.kind == "divided stream":
        return Streamed(own_part(one, rank), divides_itself=True)
    return Streamed(together) if "stream" in one.kind else Listed(together)


def loader_of(one: Drawn, trainer: Any) -> Any:
    """The loader that a script makes itself; None where the trainer makes it."""
    if one.kind == "own iterable":
        return Batches(own_part(one, trainer.args.process_index), one)
    if one.kind not in ("own loader", "prepared"):
        return None
    rows = own_part(one, trainer.args.process_index) if one.kind == "own loader" else numbers(0, sum(one.sizes))
    loader = DataLoader(Listed(rows), batch_size=one.batch, collate_fn=numbered, drop_last=one.drop_last)
    return trainer.accelerator.prepare(loader) if one.kind == "prepared" else loader


class Loading(Noting):
    """With the loader of a configuration."""

    one: Drawn

    def get_train_dataloader(self) -> Any:
        own = loader_of(self.one, self)
        return super().get_train_dataloader() if own is None else own

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        own = loader_of(self.one, self)
        return super().get_test_dataloader(test_dataset) if own is None else own


def loading(one: Drawn, folder: Path) -> Loading:
    args = arguments(
        folder,
        per_device_train_batch_size=one.batch,
        per_device_eval_batch_size=one.batch,
        gradient_accumulation_steps=one.accumulation,
        dataloader_num_workers=one.workers,
        dataloader_drop_last=one.drop_last,
        train_sampling_strategy="random",
        max_steps=1000,
        accelerator_config=one.settings,
        metric_for_best_model=None,
    )
    rank = args.process_index
    trainer = Loading(Level(), args, data_collator=numbered, train_dataset=rows_of(one, rank), callbacks=[StopAfter(2)])
    trainer.one, trainer.updates = one, []
    return trainer


def trained(one: Drawn, folder: Path) -> dict[str, Any]:
    """Two epochs of a configuration."""
    trainer = loading(one, folder)
    trainer.train()
    return outcome(trainer)


def predicted(one: Drawn, folder: Path) -> list[int]:
    """The samples of a prediction of the same data."""
    trainer = loading(one, folder)
    found = trainer.predict(rows_of(one, trainer.args.process_index), ignore_keys=["loss"])
    return [int(number) for number in np.ravel(found.predictions)]


# ---- metrics ----


class Wide(nn.Module):
    """Outputs as wide as their batch's longest sample."""

    def forward(self, tokens: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": labels.float().mean(), "logits": tokens.float(), "index": index}


CALLS: list[int] = []


def rows_seen(prediction: Any) -> dict[str, Any]:
    """Which rows there are, and that their padding is no part of them."""
    CALLS.append(1)
    values, index = prediction.predictions
    labels = prediction.label_ids
    sums = {int(row): float(np.where(wide == -100, 0, wide).sum()) for row, wide in zip(index, values, strict=True)}
    return {"count": len(index), "sums": sorted(sums.items()), "labels": int((labels != -100).sum())}


def ragged(sizes: Sequence[int], folder: Path, **options: Any) -> dict[str, Any]:
    """An evaluation of texts of which each process has its own number, and so its own widths."""
    args = arguments(folder, per_device_eval_batch_size=3, **options)
    rank, rows = args.process_index, texts(sum(sizes))
    own = rows[sum(sizes[:rank]) :][: sizes[rank]]
    CALLS.clear()

    class Own(Trainer):
        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            return DataLoader(Listed(own), batch_size=3, collate_fn=padded)

    found = Own(Wide(), args, eval_dataset=rows, compute_metrics=rows_seen).evaluate()
    return {"metrics": found, "calls": len(CALLS)}


def failing(folder: Path) -> str:
    """What this process hears of a metric that fails."""

    def fails(prediction: Any) -> Any:
        raise ArithmeticError("no such metric")

    args = arguments(folder, per_device_eval_batch_size=3)
    trainer = Trainer(Wide(), args, data_collator=padded, eval_dataset=Listed(texts(5)), compute_metrics=fails)
    try:
        trainer.evaluate()
    except ArithmeticError as error:
        return str(error)
    return ""


RAGGED = {2: (7, 0), 4: (2, 0, 7, 4)}


def collect(folder: Path, world: int) -> dict[str, Any]:
    """Everything that a process of this world finds."""
    found: dict[str, Any] = {"same": {name: same_work(case, folder, world) for name, case in SAME.items()}}
    if world > 1:
        found["drawn"] = [trained(one, folder) for one in drawn(world)]
        found["predicted"] = [predicted(one, folder) for one in drawn(world)]
        found["ragged"] = ragged(RAGGED[world], folder)
        found["ragged, as the reference"] = ragged(RAGGED[world], folder, compat="5")
        found["failing"] = failing(folder)
    return found


def main(out: Path) -> None:
    """Save what this process finds."""
    world = int(os.environ["WORLD_SIZE"])
    torch.save(collect(out / "run", world), out / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
