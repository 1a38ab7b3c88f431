"""What training with several processes costs: time per update of DDP loops, and of sharded saves, in two processes.

    python benchmarks/distributed.py                 # both tables
    python benchmarks/distributed.py --only step     # one of them
    python benchmarks/distributed.py --markdown      # tables for the README
    python benchmarks/distributed.py --quick         # does it run at all; the numbers mean nothing

- `step`: a hand-written loop around torch's DistributedDataParallel, Mainspring, and the reference, on the same model with
  the same buckets, fused AdamW, a linear schedule and clipping to 1.0, over gloo. `gpt2` is a language model whose update
  takes tens of milliseconds; `mlp` a tiny network, where what a loop adds shows.
- `save`: an FSDP run of two processes that saves after every update: shards, or the whole state gathered. Beside each save
  the same shards are written by `torch.distributed.checkpoint` alone, before and after it in turn; the save is divided by
  that.

All contenders take turns inside one launch of two processes, each round in the reverse order of the one before; ratios are
taken within a round, then their median. The exit status is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

PROCESSES = 2
BARE, OURS, SEARCHING, REFERENCE = "hand-written", "mainspring", "mainspring, its defaults", "transformers"
PACKAGES = {BARE: "torch", OURS: "mainspring", SEARCHING: "mainspring", REFERENCE: "transformers"}
"""Contender -> the package it needs. The second of ours looks for unused parameters, as both libraries do by default."""

SHARDED, WHOLE = "SHARDED_STATE_DICT", "FULL_STATE_DICT"
STEP_GOAL = 1.02
"""An update of ours on `gpt2` over the hand-written loop's."""

LEARNING_RATE, MAX_NORM = 1e-3, 1.0
COMMON = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # glibc keeps freed memory for the next update, rather than take page faults at a rate that depends on chance.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: Turns of every contender.
        first: Updates before the clock starts.
        gpt2: Updates of `gpt2` while it runs.
        mlp: The same of `mlp`.
        width: Of each layer of the model that is saved.
        layers: How many it has.
        saves: Of each turn, after one that is not measured.
    """

    rounds: int = 7
    first: int = 5
    gpt2: int = 40
    mlp: int = 400
    width: int = 1024
    layers: int = 24
    saves: int = 4


QUICK = Size(rounds=1, first=1, gpt2=2, mlp=3, width=64, layers=2, saves=2)
WORKLOADS = ("gpt2", "mlp")


# --- the work ---------------------------------------------------------------------------------------------------------


def build_model(workload: str) -> Any:
    """The model of a workload; its forward takes the batch's columns and returns a mapping with `loss`."""
    import torch

    torch.manual_seed(0)
    if workload == "mlp":
        return stack(16, 2)
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=1000, n_positions=64, n_embd=192, n_layer=4, n_head=4))


def stack(width: int, layers: int) -> Any:
    """Square layers, and the mean square of what they make."""
    from torch import nn

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            return {"loss": nn.functional.mse_loss(self.layers(x).mean(-1), labels)}

    return Stack()


def build_dataset(workload: str, rows: int, width: int = 16) -> list[dict[str, Any]]:
    """Rows in memory."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if workload == "gpt2":
        return [{"input_ids": row, "labels": row} for row in torch.randint(0, 1000, (rows, 64), generator=generator)]
    x = torch.randn(rows, width, generator=generator)
    return [{"x": row, "labels": target} for row, target in zip(x, x.sum(-1), strict=True)]


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack every column."""
    import torch

    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


class Clock:
    """Reads the time after updates `first` and `first + updates`."""

    def __init__(self, first: int, updates: int) -> None:
        self.first, self.updates, self.done, self.start = first, updates, 0, 0.0
        self.seconds: float | None = None

    @property
    def total(self) -> int:
        """Updates of the whole run: a few more than are timed, so that no loop's ending is."""
        return self.first + self.updates + 2

    def tick(self) -> None:
        """Count one update."""
        self.done += 1
        if self.done == self.first:
            self.start = perf_counter()
        elif self.done == self.first + self.updates:
            self.seconds = (perf_counter() - self.start) / self.updates


# --- an update --------------------------------------------------------------------------------------------------------


def run_by_hand(workload: str, clock: Clock) -> None:
    """The loop a careful person writes around torch's wrapper."""
    import torch
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler

    dataset: Any = build_dataset(workload, 8 * PROCESSES * clock.total)
    loader = DataLoader(dataset, batch_size=8, sampler=DistributedSampler(dataset), collate_fn=collate)
    model = DistributedDataParallel(build_model(workload))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (clock.total - step) / clock.total))
    model.train()
    for batch in loader:
        model(**batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.tick()


def run_trainer(contender: str, workload: str, clock: Clock) -> None:
    """A Trainer of the documented interface, Mainspring's or the reference's."""
    library: Any = importlib.import_module(PACKAGES[contender])

    class Ticker(library.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_NORM,
            optim="adamw_torch_fused",
            save_strategy="no",
            ddp_find_unused_parameters=None if contender == SEARCHING else False,
            **COMMON,
        )
        dataset = build_dataset(workload, 8 * PROCESSES * clock.total)
        trainer = library.Trainer(
            build_model(workload), args, train_dataset=dataset, data_collator=collate, callbacks=[Ticker()]
        )
        trainer.train()
        assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"


def measure_step(contender: str, workload: str, size: Size) -> float:
    """Seconds per update of one turn."""
    clock = Clock(size.first, getattr(size, workload))
    if contender == BARE:
        run_by_hand(workload, clock)
    else:
        run_trainer(contender, workload, clock)
    if clock.seconds is None:
        raise RuntimeError(f"{contender} ran fewer than {size.first + clock.updates} updates of {workload}")
    return clock.seconds


# --- a save -----------------------------------------------------------------------------------------------------------


def write_barely(folder: Path, model: Any, optimizer: Any) -> float:
    """Write the shards with nothing around it; the seconds it took."""
    from torch import distributed as dist
    from torch.distributed.checkpoint import save
    from torch.distributed.checkpoint.state_dict import get_state_dict

    dist.barrier()
    begin = perf_counter()
    weights, state = get_state_dict(model, optimizer)
    save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    dist.barrier()
    seconds = perf_counter() - begin
    if dist.get_rank() == 0:
        shutil.rmtree(folder)
    return seconds


def measure_saves(form: str, size: Size, folder: Path) -> list[dict[str, float]]:
    """Seconds of each save of one run, and of the bare write beside it."""
    from torch import distributed as dist

    import mainspring

    found: list[dict[str, float]] = []

    class Watch(mainspring.TrainerCallback):
        before = ended = 0.0

        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
        ) -> None:
            self.before = write_barely(folder / "bare", model, optimizer) if state.global_step % 2 else 0.0
            dist.barrier()
            self.ended = perf_counter()

        def on_step_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
        ) -> None:
            if not state.global_step:
                return
            dist.barrier()
            seconds = perf_counter() - self.ended
            found.append({"save": seconds, "bare": self.before or write_barely(folder / "bare", model, optimizer)})

    fsdp = {"fsdp": True, "fsdp_config": {"state_dict_type": form, "auto_wrap_policy": "NO_WRAP"}}
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    args = mainspring.TrainingArguments(str(folder / form), max_steps=size.saves + 2, **saving, **fsdp, **COMMON)
    dataset: Any = build_dataset("mlp", 8 * PROCESSES * (size.saves + 2), size.width)
    model = stack(size.width, size.layers)
    trainer = mainspring.Trainer(model, args, train_dataset=dataset, data_collator=collate, callbacks=[Watch()])
    trainer.train()
    assert trainer._engine.kind == "fsdp"
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder / form)
    return found[1:]


# --- one process of two -----------------------------------------------------------------------------------------------


def turns(contenders: list[str], rounds: int, measure: Callable[[str], Any]) -> dict[str, list[Any]]:
    """Measure every contender once a round; every other round in reverse, so that no one always comes first."""
    found: dict[str, list[Any]] = {contender: [] for contender in contenders}
    for index in range(rounds):
        for contender in contenders if index % 2 == 0 else reversed(contenders):
            with contextlib.redirect_stdout(io.StringIO()):
                found[contender].append(measure(contender))
    return found


def work(what: str, contenders: list[str], size: Size, folder: Path) -> dict[str, Any]:
    """Everything that this process of two measures."""
    import logging
    import warnings

    import torch
    from torch import distributed as dist

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    dist.init_process_group("gloo")
    assert dist.get_world_size() == PROCESSES
    if what == "save":
        return turns([SHARDED, WHOLE], size.rounds, lambda form: measure_saves(form, size, folder))
    return {
        workload: turns(contenders, size.rounds, lambda contender: measure_step(contender, workload, size))  # noqa: B023
        for workload in WORKLOADS
    }


def launch(what: str, contenders: list[str], size: Size, place: Path) -> dict[str, Any]:
    """Start both processes; what the first one measured."""
    print(f"{what}: {size.rounds} rounds in one launch of {PROCESSES} processes", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
        given = ["--measure", what, "--size", json.dumps(asdict(size)), "--folder", folder, "--contenders", *contenders]
        done = subprocess.run(
            [*command, __file__, *given, "--out", str(out)],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{what} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


# --- the comparison ---------------------------------------------------------------------------------------------------


def ratio(own: list[float], base: list[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(mine / other for mine, other in zip(own, base, strict=True))


def step_rows(found: dict[str, list[float]], workload: str) -> list[list[str]]:
    """The table of updates."""
    rows = [[workload, "ms/update", "added ms", "ratio"]]
    for contender, taken in found.items():
        added = statistics.median(mine - base for mine, base in zip(taken, found[BARE], strict=True))
        times = [f"{statistics.median(taken) * 1e3:.3f}", f"{added * 1e3:+.3f}"]
        rows.append([contender, *times, f"{ratio(taken, found[BARE]):.3f}x"])
    return rows


def save_rows(found: dict[str, list[list[dict[str, float]]]]) -> list[list[str]]:
    """The table of saves."""
    rows = [["save", "s", "bare write s", "ratio"]]
    for form, taken in found.items():
        every = [reading for turn in taken for reading in turn]
        seconds = [f"{statistics.median(reading[name] for reading in every):.3f}" for name in ("save", "bare")]
        rows.append([form, *seconds, f"{ratio([one['save'] for one in every], [one['bare'] for one in every]):.3f}x"])
    return rows


def table(rows: list[list[str]], markdown: bool) -> str:
    """Lay the rows out, in markdown or in aligned columns."""
    if markdown:
        head, *body = rows
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def available(contenders: list[str]) -> list[str]:
    """Those whose package is installed; the others are named on stderr, never dropped in silence."""
    missing = [name for name in contenders if importlib.util.find_spec(PACKAGES[name]) is None]
    for name in missing:
        print(f"left out: {name} (pip install {PACKAGES[name]})", file=sys.stderr)
    return [name for name in contenders if name not in missing]


def main() -> int:
    """Print the tables; 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description="What training with several processes costs.")
    parser.add_argument("--only", nargs="+", choices=["step", "save"], default=["step", "save"], help="what to measure")
    parser.add_argument("--rounds", type=int, help="turns of each contender (default 7)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where checkpoints are written"
    )
    parser.add_argument("--contenders", nargs="+", choices=[*PACKAGES], default=[*PACKAGES], help="loops to compare")
    parser.add_argument("--markdown", action="store_true", help="print markdown tables")
    parser.add_argument("--quick", action="store_true", help="tiny, one round: does it run at all")
    parser.add_argument("--measure", choices=["step", "save"], help=argparse.SUPPRESS)
    parser.add_argument("--size", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        found = work(options.measure, options.contenders, Size(**options.size), options.folder)
        if os.environ["RANK"] == "0":
            options.out.write_text(json.dumps(found))
        return 0

    chosen = QUICK if options.quick else Size()
    size = Size(**{**asdict(chosen), "rounds": options.rounds or chosen.rounds})
    contenders = available([BARE, *(name for name in options.contenders if name != BARE)])
    status = 0
    if "step" in options.only:
        steps = launch("step", contenders, size, options.folder)
        for workload, taken in steps.items():
            print(table(step_rows(taken, workload), options.markdown), end="\n\n")
        if OURS in contenders:
            reached = ratio(steps["gpt2"][OURS], steps["gpt2"][BARE])
            word = "reached" if reached <= STEP_GOAL else "MISSED"
            print(f"gpt2 over the hand-written loop: {reached:.3f} (goal: at most {STEP_GOAL:g}) {word}\n")
            status = int(not options.quick and reached > STEP_GOAL)
    if "save" in options.only:
        saves = launch("save", contenders, size, options.folder)
        print(table(save_rows(saves), options.markdown))
    return status


if __name__ == "__main__":
    sys.exit(main())
