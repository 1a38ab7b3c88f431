"""Two processes of which one alone runs out of memory: small runs, whose findings are saved for each process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mainspring import Trainer
from mainspring.errors import OptionError
from tests.helpers import data, models
from tests.helpers.scarce import (
    Kwargs,
    Memory,
    Normalised,
    OfRouter,
    Router,
    Tokens,
    build,
    logged,
    more_than,
    never,
    of_one_length,
    points,
    texts,
)

RANK = int(os.environ.get("RANK", 0))

Case = Callable[[Path], dict[str, Any]]


def found(trainer: Trainer) -> dict[str, Any]:
    """What a run has left, and where it was."""
    memory: Any = trainer.model
    return {
        "world_size": trainer.args.world_size,
        "wrapper": type(trainer.model_wrapped).__name__,
        "weights": {name: value.clone() for name, value in memory.inner.state_dict().items()},
        "logs": logged(trainer, "loss", "grad_norm"),
        "pieces": trainer._progress.pieces,
        "passes": memory.passes,
        "steps": trainer.state.global_step,
    }


def _ran(folder: Path, *args: Any, **options: Any) -> dict[str, Any]:
    trainer = build(folder, *args, **options)
    trainer.train()
    return found(trainer)


def _only_second(fails: Callable[[int, int], bool]) -> Callable[[int, int], bool]:
    return fails if RANK == 1 else never


def gpt2() -> nn.Module:
    return models.tiny_gpt2()


class Wide(Memory):
    """Holds so many elements, rather than rows."""

    def forward(self, **inputs: Any) -> Any:
        self.passes.append(inputs["input_ids"].numel())
        if self.fails(self.passes[-1], len(self.passes)):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.inner(**inputs)


def _growing() -> list[dict[str, Any]]:
    """Texts that become longer and longer."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(3, models.VOCABULARY, (3 + place // 8,), generator=generator) for place in range(64)]
    return [{"input_ids": ids, "labels": ids.clone()} for ids in made]


EVEN = {"train_dataset": texts(64)}
"""Two processes need not fill anything up."""

TOGETHER: dict[str, dict[str, Any]] = {
    "mean": {"gradient_accumulation_steps": 2, "more": EVEN},
    "items": {"make": gpt2, "memory": Kwargs, "more": EVEN},
    "backward": {"backward": True, "more": EVEN},
    "routers": {"make": Router, "memory": OfRouter, "more": {"train_dataset": of_one_length(64)}},
    "stream": {"more": {"train_dataset": data.Stream(data.ragged_text(38, seed=4))}, "max_steps": 5},
    "longer and longer": {
        "memory": Wide,
        "limit": 40,
        "more": {"train_dataset": _growing()},
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
    },
}
"""Runs that must end as if memory had sufficed."""


def together(name: str, scarce: bool, folder: Path, **options: Any) -> dict[str, Any]:
    """One of them, where the second process holds only three rows, or everything fits."""
    given = {**TOGETHER[name], **options}
    limit = given.pop("limit", 3)
    given["backward"] = scarce and given.get("backward", False)
    return _ran(folder, given.pop("make", Tokens), _only_second(more_than(limit)) if scarce else never, **given)


def alone(name: str, folder: Path) -> dict[str, Any]:
    """The same in one process that is given both batches at once."""
    return together(name, False, folder, per_device_train_batch_size=16)


def no_trace(folder: Path) -> dict[str, Any]:
    """Trying first changes nothing: neither random numbers nor statistics."""

    def run(name: str, **options: Any) -> dict[str, Any]:
        more = {"train_dataset": points(), "data_collator": None}
        return _ran(folder / name, Normalised, more=more, gradient_accumulation_steps=2, **options)

    return {"tried": run("with"), "untried": run("without", auto_find_batch_size=False)}


def steady(folder: Path) -> dict[str, Any]:
    """Four updates of one size, which always fits."""
    rows = [{"input_ids": torch.arange(3, 9), "labels": torch.arange(3, 9)} for _ in range(16)]
    return _ran(folder, more={"train_dataset": rows}, num_train_epochs=4)


def optimizer_states(folder: Path) -> dict[str, Any]:
    """After the first update there is less memory: the same sizes are tried again."""
    trainer = build(folder, fails=_only_second(lambda rows, _: rows > (3 if trainer.state.global_step else 8)))
    trainer.train()
    return found(trainer)


def hopeless(folder: Path) -> dict[str, Any]:
    """Not even one row fits in the second process."""
    trainer = build(folder, fails=_only_second(more_than(0)))
    try:
        trainer.train()
    except torch.OutOfMemoryError as error:
        return {"error": str(error), "passes": trainer.model.passes}
    raise AssertionError("it fits")


def resumed(folder: Path) -> dict[str, Any]:
    """A run that has found its pieces, and one that goes on from its first checkpoint."""
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3}
    whole = build(folder, fails=_only_second(more_than(3)), **options)
    whole.train()
    again = build(folder, fails=_only_second(more_than(3)), **options)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    return {"whole": found(whole), "again": found(again)}


def refused(folder: Path) -> dict[str, Any]:
    """What cannot be tried by one process alone."""
    texts = []
    settings = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    synchronised = nn.SyncBatchNorm(4)
    refused: list[dict[str, Any]] = [
        {"accelerator_config": settings},
        {"make": lambda: synchronised},
        {"ddp_static_graph": True},
        {"fsdp": True},
    ]
    for options in refused:
        try:
            build(folder, **options)
        except OptionError as error:
            texts.append(str(error))
    return {"texts": texts}


CASES: dict[str, Case] = {
    **{name: lambda folder, name=name: together(name, True, folder) for name in TOGETHER},  # type: ignore[misc]
    **{f"{name} whole": lambda folder, name=name: together(name, False, folder) for name in TOGETHER},  # type: ignore[misc]
    "no trace": no_trace,
    "steady": steady,
    "optimizer states": optimizer_states,
    "hopeless": hopeless,
    "resumed": resumed,
    "refused": refused,
}


def main(out: Path) -> None:
    """Save `<case>-rank<r>.pt`."""
    for name, case in CASES.items():
        torch.save(case(out / name.replace(" ", "_")), out / f"{name}-rank{RANK}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
