"""Data loading."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.arguments.enums import SamplingStrategy
from mainspring.arguments.option import non_negative, option, positive


@dataclass(kw_only=True)
class DataArguments:
    """Data loading."""

    dataloader_drop_last: bool = option(False, "Leave out the last batch where it is not full.")
    dataloader_num_workers: int = option(0, "Processes that load data; 0 loads in the main one.", check=non_negative)
    dataloader_pin_memory: bool = option(True, "Pin batches in memory where there is an accelerator.")
    dataloader_persistent_workers: bool = option(False, "Keep the workers between epochs.")
    dataloader_prefetch_factor: int | None = option(None, "Batches that each worker loads ahead.", check=positive)
    dataloader_multiprocessing_context: str | None = option(
        None, "How workers are started.", choices=("fork", "spawn", "forkserver")
    )
    dataloader_in_order: bool = option(True, "Take the workers' batches in order.")
    remove_unused_columns: bool = option(True, "Leave out columns that the model's forward does not take.")
    train_sampling_strategy: SamplingStrategy | str = option(
        SamplingStrategy.RANDOM, "Order of the training samples.", choices=SamplingStrategy
    )
    length_column_name: str = option(
        "length", "Column of the samples' lengths, for strategies that go by length; without it, samples are measured."
    )
