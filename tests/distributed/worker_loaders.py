"""Train on this process of several with loaders of every kind, and save which samples each update saw."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

from mainspring import Trainer, TrainerCallback, TrainingArguments
from mainspring.errors import OptionError

ACCUMULATION = "gradient_accumulation_kwargs"


class Line(torch.nn.Module):
    """One weight, and dropout that draws from the generator which orders might be drawn from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = (torch.nn.functional.dropout(self.weight * x, 0.5) / 100 + noise).mean()
        return {"loss": loss, "numbers": x}


def rows(indices: Any) -> dict[str, torch.Tensor]:
    """A batch of sample numbers, and a random number for each."""
    numbers = torch.tensor([float(row["x"]) for row in indices])
    return {"x": numbers, "noise": torch.rand(len(numbers))}


class Rows(torch.utils.data.Dataset):
    """Map-style data that counts its reads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reads = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        self.reads += 1
        return {"x": index}


class Stream(IterableDataset):
    """A stream in an order of its own generator."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reads = 0
        self.generator = torch.Generator()

    def __iter__(self) -> Iterator[dict[str, int]]:
        for index in torch.randperm(self.count, generator=self.generator).tolist():
            self.reads += 1
            yield {"x": index}


class Growing(Rows):
    """Samples that are longer in each epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, int]:
        return {**super().__getitem__(index), "length": 2 + index % 3 + 4 * self.epoch}


class Broken(Rows):
    """It fails in the middle."""

    def __getitem__(self, index: int) -> dict[str, int]:
        if index == 9:
            raise OSError("sample 9 cannot be read")
        return super().__getitem__(index)


def shards(*sizes: int) -> Any:
    """A `datasets` stream of one shard per size."""

    def generate(sizes: list[tuple[int, int]]) -> Iterator[dict[str, int]]:
        for start, size in sizes:
            yield from ({"x": start + index} for index in range(size))

    starts = [(sum(sizes[:place]), size) for place, size in enumerate(sizes)]
    return datasets.IterableDataset.from_generator(generate, gen_kwargs={"sizes": starts})


class Recording(Trainer):
    """Notes the samples of each micro-batch, and whether its gradients are reduced."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._engine.is_idle:
            self.seen.append([int(number) for number in inputs["x"]])
            self.noise.append([round(float(number), 6) for number in inputs["noise"]])
        self.reduced.append(model.require_backward_grad_sync)
        return super().training_step(model, inputs, *args, **kwargs)


class Weighted(Recording):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return WeightedRandomSampler(torch.ones(len(self.train_dataset)), 16)


class Prepared(Recording):
    def get_train_dataloader(self) -> Any:
        return self.accelerator.prepare(super().get_train_dataloader())


class Shuffled(Recording):
    """A loader of the script's own: each process goes through all of the data, in an order of its own."""

    def get_train_dataloader(self) -> Any:
        torch.manual_seed(7 + self.args.process_index)
        return DataLoader(self.train_dataset, batch_size=4, shuffle=True, collate_fn=self.data_collator)


class OwnLengths(Recording):
    """A loader of the script's own, with another number of samples on each process."""

    def get_train_dataloader(self) -> Any:
        rows_here = Rows(6 + 7 * self.args.process_index)
        return DataLoader(rows_here, batch_size=4, shuffle=True, collate_fn=self.data_collator)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def train(out: Path, data: Any, kind: type[Recording] = Recording, stop: int = 0, **options: Any) -> dict[str, Any]:
    """What one run saw; with `stop` it ends at that update, and a second one resumes it."""
    folder = out / "run"
    settings = options.pop("settings", {})
    stated = {"max_steps": 7} if isinstance(data, IterableDataset) else {"num_train_epochs": 2}
    options = {"per_device_train_batch_size": 4, "train_sampling_strategy": "random", **stated, **options}

    def build(**more: Any) -> Any:
        torch.manual_seed(1)
        args = TrainingArguments(
            str(folder),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            learning_rate=0.1,
            save_strategy="steps" if stop else "no",
            save_steps=1,
            accelerator_config=settings,
            remove_unused_columns=False,
            **options,
        )
        trainer: Any = kind(Line(), args, data_collator=rows, train_dataset=data, **more)
        trainer.seen, trainer.noise, trainer.reduced = [], [], []
        return trainer

    trainer = build(callbacks=[StopAt(stop)] if stop else [])
    trainer.train()
    if stop:
        first = trainer.seen, trainer.noise
        trainer = build()
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop}"))
        trainer.seen, trainer.noise = first[0] + trainer.seen, first[1] + trainer.noise
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            shutil.rmtree(folder)
        trainer.accelerator.wait_for_everyone()
    return {
        "seen": trainer.seen,
        "noise": trainer.noise,
        "reduced": trainer.reduced,
        "steps": trainer.state.global_step,
        "total": trainer.get_total_train_batch_size(trainer.args),
        "weight": float(trainer.model.weight),
        "reads": getattr(data, "reads", 0),
    }


SEQUENTIAL = {"train_sampling_strategy": "sequential", "num_train_epochs": 1}
BUDGET = {
    "train_sampling_strategy": "token_budget",
    "max_tokens_per_batch": 16,
    "length_column_name": "length",
    "gradient_accumulation_steps": 2,
    "max_steps": 5,
}

CASES: dict[str, Any] = {
    "plain": lambda out, **k: train(out, Rows(21), **k),
    "workers": lambda out, **k: train(out, Rows(21), dataloader_num_workers=1, **k),
    "in a row": lambda out, **k: train(out, Rows(21), **SEQUENTIAL, **k),
    "split": lambda out, **k: train(out, Rows(21), settings={"split_batches": True}, **SEQUENTIAL, **k),
    "dispatched": lambda out, **k: train(out, Rows(21), settings={"dispatch_batches": True}, **k),
    "dispatched by workers": lambda out, **k: train(
        out, Rows(21), settings={"dispatch_batches": True}, dataloader_num_workers=1, **k
    ),
    "stream": lambda out, **k: train(out, Stream(21), **k),
    "dispatched stream": lambda out, **k: train(out, Stream(21), settings={"dispatch_batches": True}, **k),
    "shards": lambda out, **k: train(out, shards(4, 12), settings={"dispatch_batches": False}, **k),
    "shards with drop_last": lambda out, **k: train(
        out, shards(6, 13), settings={"dispatch_batches": False}, dataloader_drop_last=True, **k
    ),
    "uneven": lambda out, **k: train(out, Rows(21), settings={"even_batches": False}, **SEQUENTIAL, **k),
    "more for one": lambda out, **k: train(out, Rows(17), settings={"even_batches": False}, **SEQUENTIAL, **k),
    "stream with more for one": lambda out, **k: train(out, Stream(17), settings={"even_batches": False}, **k),
    "empty shard": lambda out, **k: train(out, shards(0, 8), settings={"dispatch_batches": False}, **k),
    "synchronised": lambda out, **k: train(
        out, Rows(16), settings={ACCUMULATION: {"sync_each_batch": True}}, gradient_accumulation_steps=2, **k
    ),
    "not synchronised": lambda out, **k: train(out, Rows(16), gradient_accumulation_steps=2, **k),
    "drawn": lambda out, **k: train(out, Rows(16), settings={"use_seedable_sampler": False}, **k),
    "drawn and dispatched": lambda out, **k: train(
        out, Rows(16), settings={"use_seedable_sampler": False, "dispatch_batches": True}, **k
    ),
    "weighted": lambda out, **k: train(out, Rows(16), Weighted, **k),
    "growing": lambda out, **k: train(out, Growing(20), **BUDGET, **k),
    "growing and dispatched": lambda out, **k: train(
        out, Growing(20), settings={"dispatch_batches": True}, **BUDGET, **k
    ),
    "prepared": lambda out, **k: train(out, Rows(21), Prepared, **k),
    "shuffled": lambda out, **k: train(out, Rows(10), Shuffled, **k),
    "own lengths": lambda out, **k: train(out, Rows(10), OwnLengths, **k),
}
STOPS = {
    "more for one": 2,
    "stream with more for one": 5,
    "dispatched": 2,
    "dispatched stream": 2,
    "stream": 4,
    "shards": 5,
    "drawn": 3,
    "weighted": 3,
    "growing and dispatched": 2,
    "shuffled": 4,
    "own lengths": 3,
}
FAILING: dict[str, Any] = {
    "broken": lambda out: train(out, Broken(16), settings={"dispatch_batches": True}, **SEQUENTIAL),
    "indivisible": lambda out: train(out, Rows(16), settings={"split_batches": True}, per_device_train_batch_size=3),
}


EVALUATED: dict[str, dict[str, Any]] = {
    "each": {},
    "split": {"split_batches": True},
    "dispatched": {"dispatch_batches": True},
    "shards": {"dispatch_batches": False},
}


def predicted(out: Path, data: Any, settings: dict[str, Any]) -> list[int]:
    """The samples of a prediction, as they come back."""
    args = TrainingArguments(
        str(out),
        use_cpu=True,
        disable_tqdm=True,
        per_device_eval_batch_size=4,
        accelerator_config=settings,
        remove_unused_columns=False,
    )
    predictions = Trainer(Line(), args, data_collator=rows).predict(data, ignore_keys=["loss"]).predictions
    return [int(number) for number in np.ravel(predictions)]


def failure(work: Any) -> str:
    try:
        work()
    except (OptionError, ValueError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(out: Path) -> None:
    """Save what this process saw in every case."""
    found: dict[str, Any] = {name: case(out) for name, case in CASES.items()}
    found |= {f"{name}, resumed": CASES[name](out, stop=step) for name, step in STOPS.items()}
    found["predicted"] = {name: predicted(out, Rows(11), settings) for name, settings in EVALUATED.items()}
    found["streamed"] = {name: predicted(out, shards(3, 8), settings) for name, settings in EVALUATED.items()}
    found["errors"] = {name: failure(lambda case=case: case(out)) for name, case in FAILING.items()}
    (out / f"loaders-rank{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
