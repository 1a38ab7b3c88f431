"""What the data's own random numbers cost per batch.

    python benchmarks/data_stream.py                # the table
    python benchmarks/data_stream.py --markdown     # the same as markdown

Two loaders go through the same ready-made samples in turn: torch's `DataLoader`, and the package's `DrawnLoader`, which
seeds the generators for each batch and puts torch's back after it. Several epochs of both alternate; each figure is the
median of the epochs' processor times per batch, and the cost is the median of the differences.

The exit status is 1 where the goal is missed, unless `--quick` was said.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from time import process_time
from typing import Any

import torch
from torch.utils.data import DataLoader

from mainspring.data.drawn import DrawnLoader
from mainspring.data.random_stream import DataStream
from mainspring.data.samplers import DealtBatches

GOAL_US = 20.0
"""Microseconds per batch at most."""

ROWS = 8


def loaders(batches: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """A plain loader and ours over the same samples, in order."""
    samples = [torch.zeros(()) for _ in range(batches * ROWS)]
    order = DealtBatches(range(len(samples)), ROWS)
    plain: DataLoader[Any] = DataLoader(samples, batch_size=ROWS, collate_fn=_first)  # type: ignore[arg-type]
    return plain, DrawnLoader(samples, DataStream(seed=0), batch_sampler=order, collate_fn=_first)


def _first(samples: Sequence[Any]) -> Any:
    return samples[0]


def time_per_batch(loader: Iterable[Any], batches: int) -> float:
    """Microseconds per batch of one epoch."""
    began = process_time()
    counted = sum(1 for _ in loader)
    seconds = process_time() - began
    if counted != batches:
        raise RuntimeError(f"{type(loader).__name__} gave {counted} batches of {batches}")
    return seconds / batches * 1e6


def measure(epochs: int, batches: int) -> tuple[float, float, float]:
    """Medians over the epochs: the plain loader's time, ours, and the difference, in microseconds per batch."""
    plain, drawn = loaders(batches)
    time_per_batch(plain, batches)
    time_per_batch(drawn, batches)
    pairs = [(time_per_batch(plain, batches), time_per_batch(drawn, batches)) for _ in range(epochs)]
    return (
        statistics.median(left for left, _ in pairs),
        statistics.median(right for _, right in pairs),
        statistics.median(right - left for left, right in pairs),
    )


def table(plain: float, drawn: float, cost: float, markdown: bool) -> str:
    """The figures, and whether the goal is met."""
    verdict = "met" if cost <= GOAL_US else "missed"
    figures = [("DataLoader", plain), ("DrawnLoader", drawn), ("cost", cost)]
    if markdown:
        lines = ["| | µs per batch |", "|---|---|", *(f"| {name} | {value:.1f} |" for name, value in figures)]
    else:
        lines = [f"{name:12} {value:8.1f} µs per batch" for name, value in figures]
    return "\n".join([*lines, f"goal: at most {GOAL_US:.0f} µs per batch more: {verdict}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(description="What the data's own random numbers cost per batch.")
    parser.add_argument("--markdown", action="store_true", help="print a table for the README")
    parser.add_argument("--quick", action="store_true", help="does it run at all; the numbers mean nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plain, drawn, cost = measure(epochs=1, batches=20) if options.quick else measure(epochs=15, batches=2000)
    print(table(plain, drawn, cost, options.markdown))
    return int(cost > GOAL_US and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
