"""Runs that are measured in two processes, and what each was told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mainspring import Trainer, TrainingArguments
from mainspring.measuring import optimizer_report
from tests.helpers import data, models

RANK = int(os.environ.get("RANK", 0))


class Timed(Trainer):
    """Ten seconds for each micro-batch; the second process waits as long for each of them."""

    now = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        Timed.now += 10
        return super().training_step(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        return super().get_batch_samples(self._late(epoch_iterator), num_batches, device)

    def _late(self, batches: Any) -> Iterator[Any]:
        for batch in batches:
            Timed.now += 10 * RANK
            yield batch


def trainer(folder: Path, cls: type[Trainer] = Trainer, **options: Any) -> Trainer:
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "max_steps": 4}
    args = TrainingArguments(str(folder), **{**quiet, "per_device_train_batch_size": 2, "logging_steps": 2, **options})
    texts = data.Items(data.ragged_text(16))
    return cls(models.tiny_gpt2(), args, data_collator=data.collate_text, train_dataset=texts, eval_dataset=texts)


def wrapping(run: Trainer) -> dict[str, Any]:
    return {"wrapper": type(run.model_wrapped).__name__, "world_size": run.args.world_size}


def clock() -> float:
    return Timed.now


def timed(folder: Path) -> dict[str, Any]:
    run = trainer(folder, Timed, peak_flops=1e6)
    with (
        mock.patch("mainspring.measuring.window.perf_counter", clock),
        mock.patch("mainspring.trainer.time.perf_counter", clock),
    ):
        run.train()
    logs = [log for log in run.state.log_history if "loss" in log]
    told = {name: [log[name] for log in logs] for name in ("data_wait_fraction", "mfu")}
    return {**wrapping(run), **told, "operations": run.state.total_flos}


def weighed(folder: Path) -> dict[str, Any]:
    """Memory, and a profile."""
    run = trainer(folder, skip_memory_metrics=False, profile_steps="1:3")
    metrics = {**run.train().metrics, **run.evaluate()}
    report = optimizer_report(run.optimizer)
    keys = sorted(name for name in metrics if "_mem_" in name)
    return {**wrapping(run), "keys": keys, "weights": report.weights, "state": report.state}


def in_pieces(folder: Path) -> dict[str, Any]:
    run = trainer(folder, fsdp=True, fsdp_config={"version": 2})
    run.train()
    report = optimizer_report(run.optimizer)
    return {**wrapping(run), "weights": report.weights, "state": report.state}


def main(out: Path) -> None:
    results = {
        name: one(out / name) for name, one in (("timed", timed), ("weighed", weighed), ("in_pieces", in_pieces))
    }
    (out / f"rank{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
