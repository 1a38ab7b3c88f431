"""What a training loop costs on top of the arithmetic: time per update of four loops doing the same work.

    python benchmarks/overhead.py                  # the table
    python benchmarks/overhead.py --markdown       # the same as markdown, for the README
    python benchmarks/overhead.py --quick          # a smoke run: few updates, one round
    python benchmarks/overhead.py --profile        # where Mainspring's time goes, by function

Two workloads, one thread, logging, evaluation, saving and progress bars off. Every loop gets the same model, the same
`DataLoader` settings, fused AdamW, a linear schedule and clipping to a norm of 1.0.

- `mlp`: a tiny network at batch 8. Its arithmetic takes a fraction of a millisecond, so the loop's own cost shows;
  reported in microseconds per update, by wall clock and by processor time.
- `gpt2`: a 4-layer language model whose update takes tens of milliseconds; reported as a ratio of processor time.

Each loop runs in a process of its own. The processes of all loops alternate over several rounds, so that a machine that
slows down slows all of them, and the medians over the rounds are compared. A process measures the stretch between two
updates in the middle of its run: imports, set-up and warm-up do not count.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import importlib.util
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter, process_time
from typing import Any

HAND_WRITTEN = "hand-written"
MAINSPRING = "mainspring"
CONTENDERS: dict[str, str] = {
    HAND_WRITTEN: "torch",
    MAINSPRING: "mainspring",
    "transformers": "transformers",
    "lightning": "lightning",
}
"""Contender -> the package it needs."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
"""Makes glibc keep freed memory for the next update. By default it gives memory back to the system and takes page faults
when it needs it again, at a rate that depends on what happens to lie at the top of its heap: up to 3 ms per update of
`gpt2`, other in each process, and many times what any of the loops costs."""

LEARNING_RATE = 1e-3
MAX_NORM = 1.0


@dataclass(frozen=True)
class Workload:
    """What is trained, and which updates are timed.

    Attributes:
        name: "mlp" or "gpt2".
        batch_size: Samples per update.
        first: Updates before the clock starts.
        updates: Updates while it runs.
    """

    name: str
    batch_size: int
    first: int
    updates: int

    @property
    def total(self) -> int:
        """Updates of the whole run; a few more than are timed, so that no loop's ending is."""
        return self.first + self.updates + 3


FULL = {"mlp": Workload("mlp", 8, 200, 2000), "gpt2": Workload("gpt2", 8, 5, 60)}
QUICK = {"mlp": Workload("mlp", 8, 20, 50), "gpt2": Workload("gpt2", 8, 1, 3)}


@dataclass(frozen=True)
class Reading:
    """Seconds per update of one process.

    Attributes:
        wall: By the wall clock.
        processor: Processor time of the process, all threads.
    """

    wall: float
    processor: float


class Clock:
    """Reads both clocks after updates `first` and `first + updates`.

    Args:
        workload: Which updates are timed.
        profiler: Switched on between the two readings.
    """

    def __init__(self, workload: Workload, profiler: cProfile.Profile | None = None) -> None:
        self._workload = workload
        self._profiler = profiler
        self._done = 0
        self._start = (0.0, 0.0)
        self.reading: Reading | None = None

    def update_done(self) -> None:
        """Count one update."""
        self._done += 1
        if self._done == self._workload.first:
            self._start = (perf_counter(), process_time())
            if self._profiler is not None:
                self._profiler.enable()
        elif self._done == self._workload.first + self._workload.updates:
            if self._profiler is not None:
                self._profiler.disable()
            wall, processor = perf_counter() - self._start[0], process_time() - self._start[1]
            self.reading = Reading(wall / self._workload.updates, processor / self._workload.updates)


# --- the common work -------------------------------------------------------------------------------------------------


def build_model(workload: Workload) -> Any:
    """The model of a workload; its forward takes the batch's columns and returns a mapping with `loss`."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if workload.name == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        return GPT2LMHeadModel(GPT2Config(vocab_size=1000, n_positions=64, n_embd=128, n_layer=4, n_head=4))

    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            return {"loss": nn.functional.mse_loss(self.layers(x).squeeze(-1), labels)}

    return Perceptron()


def build_dataset(workload: Workload) -> Any:
    """A dataset in memory with as many rows as the run needs: one epoch, no epoch boundary inside the timed stretch."""
    import torch

    rows = workload.total * workload.batch_size
    generator = torch.Generator().manual_seed(0)
    if workload.name == "gpt2":
        ids = torch.randint(0, 1000, (rows, 64), generator=generator)
        return [{"input_ids": row, "labels": row} for row in ids]
    x = torch.randn(rows, 16, generator=generator)
    return [{"x": row, "labels": target} for row, target in zip(x, x.sum(-1), strict=True)]


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack every column."""
    import torch

    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def build_loader(workload: Workload) -> Any:
    """The `DataLoader` that every contender iterates (or builds alike from the same options)."""
    from torch.utils.data import DataLoader

    return DataLoader(build_dataset(workload), batch_size=workload.batch_size, shuffle=True, collate_fn=collate)


def build_optimizer(model: Any, total: int) -> tuple[Any, Any]:
    """Fused AdamW without decay, and a schedule that falls to zero over the run."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (total - step) / total))


# --- the contenders --------------------------------------------------------------------------------------------------


def run_hand_written(workload: Workload, clock: Clock) -> None:
    """The loop a careful person writes, with nothing that the arithmetic does not need."""
    import torch

    model = build_model(workload)
    optimizer, schedule = build_optimizer(model, workload.total)
    model.train()
    for batch in build_loader(workload):
        loss = model(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.update_done()


def run_trainer(package: str, workload: Workload, clock: Clock) -> None:
    """A Trainer of the documented interface, Mainspring's or the reference's."""
    library: Any = importlib.import_module(package)

    class Ticker(library.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.update_done()

    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            num_train_epochs=1,
            per_device_train_batch_size=workload.batch_size,
            learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_NORM,
            optim="adamw_torch_fused",
            lr_scheduler_type="linear",
            logging_strategy="no",
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = library.Trainer(
            model=build_model(workload),
            args=args,
            train_dataset=build_dataset(workload),
            data_collator=collate,
            callbacks=[Ticker()],
        )
        trainer.train()


def run_lightning(workload: Workload, clock: Clock) -> None:
    """Lightning with everything optional switched off."""
    lightning: Any = importlib.import_module("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = build_model(workload)

        def training_step(self, batch: dict[str, Any], index: int) -> Any:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            optimizer, schedule = build_optimizer(self.model, workload.total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Ticker(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            clock.update_done()

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=MAX_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Ticker()],
    )
    trainer.fit(Module(), build_loader(workload))


def runner(contender: str) -> Callable[[Workload, Clock], None]:
    """The function that runs `contender`."""
    if contender == HAND_WRITTEN:
        return run_hand_written
    if contender == "lightning":
        return run_lightning
    return lambda workload, clock: run_trainer(CONTENDERS[contender], workload, clock)


# --- one process -----------------------------------------------------------------------------------------------------


def measure_here(contender: str, workload: Workload, profiler: cProfile.Profile | None = None) -> Reading:
    """Run `contender` in this process and read its clocks; `profiler`, if any, sees what they time."""
    import logging
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock = Clock(workload, profiler)
    runner(contender)(workload, clock)
    if clock.reading is None:
        raise RuntimeError(f"{contender} ran fewer than {workload.first + workload.updates} updates")
    return clock.reading


def measure_apart(contender: str, workload: Workload, keep_memory: bool = True) -> Reading:
    """Run `contender` in a new process of one thread and read its clocks."""
    environment = {**os.environ, **ONE_THREAD, **(KEEP_MEMORY if keep_memory else {})}
    command = [sys.executable, __file__, "--measure", contender, "--workload", json.dumps(asdict(workload))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} failed on {workload.name}:\n{done.stderr[-2000:]}")
    return Reading(**json.loads(done.stdout.splitlines()[-1]))


# --- the comparison --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table: medians over the rounds, and their difference to and ratio with the hand-written loop.

    Attributes:
        contender: Whose line.
        wall: Median microseconds per update by the wall clock.
        processor: Median microseconds of processor time per update.
        added_wall: Median over the rounds of the microseconds added to that round's hand-written loop.
        added_processor: The same in processor time.
        ratio: Median over the rounds of processor time divided by that round's hand-written loop's.
    """

    contender: str
    wall: float
    processor: float
    added_wall: float
    added_processor: float
    ratio: float


def alternate(
    contenders: list[str], workload: Workload, rounds: int, keep_memory: bool = True
) -> Iterator[tuple[str, Reading]]:
    """Measure every contender once a round; every other round in reverse, so that no one always comes first."""
    for index in range(rounds):
        for contender in contenders if index % 2 == 0 else reversed(contenders):
            print(f"{workload.name} round {index + 1}/{rounds}: {contender}", file=sys.stderr, flush=True)
            yield contender, measure_apart(contender, workload, keep_memory)


def compare(contenders: list[str], workload: Workload, rounds: int, keep_memory: bool = True) -> list[Row]:
    """Measure and summarise."""
    readings: dict[str, list[Reading]] = {contender: [] for contender in contenders}
    for contender, reading in alternate(contenders, workload, rounds, keep_memory):
        readings[contender].append(reading)
    return [_row(contender, readings[contender], readings[HAND_WRITTEN]) for contender in contenders]


def _row(contender: str, own: list[Reading], baseline: list[Reading]) -> Row:
    rounds = list(zip(own, baseline, strict=True))
    return Row(
        contender,
        wall=statistics.median(reading.wall for reading in own) * 1e6,
        processor=statistics.median(reading.processor for reading in own) * 1e6,
        added_wall=statistics.median(mine.wall - base.wall for mine, base in rounds) * 1e6,
        added_processor=statistics.median(mine.processor - base.processor for mine, base in rounds) * 1e6,
        ratio=statistics.median(mine.processor / base.processor for mine, base in rounds),
    )


def table(rows: list[Row], workload: Workload, markdown: bool) -> str:
    """Lay the rows out, in markdown or in aligned columns."""
    head = ["loop", "wall µs/update", "added", "processor µs/update", "added", "ratio"]
    body = [_cells(row) for row in rows]
    title = f"{workload.name}, batch {workload.batch_size}, {workload.updates} updates"
    if markdown:
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        return "\n".join([f"**{title}**", "", *("| " + " | ".join(line) + " |" for line in lines)])
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    aligned = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *body]]
    return "\n".join([title, *aligned])


def _cells(row: Row) -> list[str]:
    wall, processor = (
        [f"{row.wall:.0f}", f"{row.added_wall:+.0f}"],
        [f"{row.processor:.0f}", f"{row.added_processor:+.0f}"],
    )
    return [row.contender, *wall, *processor, f"{row.ratio:.3f}x"]


def profile(contender: str, workload: Workload) -> None:
    """Print where the time of `contender`'s timed updates goes, by time spent in each function itself."""
    profiler = cProfile.Profile()
    measure_here(contender, workload, profiler)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(60)


def available(contenders: list[str]) -> list[str]:
    """Those whose package is installed; the others are named on stderr, never dropped in silence."""
    missing = [name for name in contenders if importlib.util.find_spec(CONTENDERS[name]) is None]
    for name in missing:
        print(f"left out: {name} (pip install {CONTENDERS[name]})", file=sys.stderr)
    return [name for name in contenders if name not in missing]


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description="Time per update of four training loops.")
    parser.add_argument("--only", nargs="+", choices=[*FULL], default=[*FULL], help="workloads to run")
    parser.add_argument("--rounds", type=int, help="rounds of processes per workload (default 7; mlp and gpt2 alike)")
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS], help="loops to compare (default: all)")
    parser.add_argument("--markdown", action="store_true", help="print markdown tables")
    parser.add_argument("--quick", action="store_true", help="few updates, one round: does it run at all")
    parser.add_argument(
        "--profile", action="store_true", help="profile one loop: Mainspring, or the first of --contenders"
    )
    parser.add_argument("--default-allocator", action="store_true", help="let glibc trim and map as it does by default")
    parser.add_argument("--measure", choices=[*CONTENDERS], help=argparse.SUPPRESS)
    parser.add_argument("--workload", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()

    workloads = QUICK if options.quick else FULL
    if options.measure:
        print(json.dumps(asdict(measure_here(options.measure, Workload(**options.workload)))))
        return
    if options.profile:
        profile((options.contenders or [MAINSPRING])[0], workloads[options.only[0]])
        return
    rounds = options.rounds or (1 if options.quick else 7)
    for name in options.only:
        default = [*CONTENDERS] if name == "mlp" else [HAND_WRITTEN, MAINSPRING]
        wanted = options.contenders or default
        contenders = available([HAND_WRITTEN, *(c for c in wanted if c != HAND_WRITTEN)])
        rows = compare(contenders, workloads[name], rounds, keep_memory=not options.default_allocator)
        print(table(rows, workloads[name], options.markdown), end="\n\n")


if __name__ == "__main__":
    main()
