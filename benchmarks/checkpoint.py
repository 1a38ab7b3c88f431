"""What checkpoints cost: how long training waits for a save, how long one takes, and how long resuming takes.

    python benchmarks/checkpoint.py                 # both tables; needs 4 GB of memory and 4 GB of disk
    python benchmarks/checkpoint.py --only resume   # one of them
    python benchmarks/checkpoint.py --folder /data  # on that disk, rather than in the folder for temporary files
    python benchmarks/checkpoint.py --markdown      # tables as markdown
    python benchmarks/checkpoint.py --quick         # a smoke run: tiny, one round; the numbers mean nothing

- `save`: a model of 100 million parameters with its AdamW state, 1.2 GB. Training waits from the end of an update to the
  beginning of the next one; the save takes until the checkpoint has its name. Before or after each, in turn, the same
  state is written barely, by `safetensors.save_file` and `torch.save`, files and folder flushed; the save is divided by
  that.
- `resume`: from the call of `train(resume_from_checkpoint=...)` to the end of the first update, at an early and at a late
  update of the same epoch. Each sample of the data takes 50 µs of work, so that reading what is skipped would show.

Every contender runs in processes of its own, which take turns. The exit status is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

SYNC, BACKGROUND, REFERENCE = "mainspring", "mainspring, in the background", "transformers"
PACKAGES = {SYNC: "mainspring", BACKGROUND: "mainspring", REFERENCE: "transformers"}

SYNC_GOAL = 1.15
"""A save in the foreground, hashing included, over the bare write."""
BLOCKING_GOAL = 0.15
"""What training waits for a save of the background, over a save in the foreground."""
RESUME_GOAL = 1.25
"""Resuming late over resuming early; 1.0, and what the clock's noise leaves of it."""

COMMON = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_strategy": "no",
    "save_strategy": "steps",
    "per_device_train_batch_size": 8,
}
WORK_S = 50e-6


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        width: Of each layer of the model that is saved.
        layers: How many layers it has.
        saves: That are measured in each process, after one that is not.
        early: The first update that is resumed from.
        late: The second one.
        resumes: From each of them in each process.
        rounds: Processes of each contender.
    """

    width: int = 2048
    layers: int = 24
    saves: int = 4
    early: int = 10
    late: int = 4000
    resumes: int = 5
    rounds: int = 3


QUICK = Size(width=32, layers=2, saves=1, early=2, late=20, resumes=1, rounds=1)


# --- what is trained -------------------------------------------------------------------------------------------------


def build_model(width: int, layers: int) -> Any:
    """A plain stack of linear layers; its forward gives a loss."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            return {"loss": (self.layers(x).mean(-1) - labels).square().mean()}

    return Stack()


def build_dataset(rows: int, width: int, work_s: float = 0.0) -> Any:
    """Rows that take `work_s` of a core each."""
    import torch
    from torch.utils.data import Dataset

    row = torch.ones(width)

    class Costly(Dataset[Any]):
        def __len__(self) -> int:
            return rows

        def __getitem__(self, index: int) -> dict[str, Any]:
            end = perf_counter() + work_s
            while perf_counter() < end:
                pass
            return {"x": row, "labels": torch.tensor(index / rows)}

    return Costly()


def build_trainer(contender: str, folder: Path, model: Any, data: Any, callbacks: list[Any], **options: Any) -> Any:
    """A Trainer of the documented interface."""
    library: Any = importlib.import_module(PACKAGES[contender])
    if contender == BACKGROUND:
        options["save_in_background"] = True
    args = library.TrainingArguments(output_dir=str(folder), **COMMON, **options)
    return library.Trainer(model=model, args=args, train_dataset=data, callbacks=callbacks)


# --- saving ----------------------------------------------------------------------------------------------------------


def write_barely(folder: Path, model: Any, optimizer: Any) -> float:
    """Write weights and optimizer to the disk with nothing around it; the seconds it took."""
    import torch
    from safetensors.torch import save_file

    begin = perf_counter()
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return perf_counter() - begin


def measure_saves(contender: str, size: Size, folder: Path) -> list[dict[str, float]]:
    """Seconds of each save of one run, and of the bare write after it."""
    library: Any = importlib.import_module(PACKAGES[contender])
    found: list[dict[str, float]] = []

    def bare(model: Any, optimizer: Any) -> float:
        os.sync()
        seconds = write_barely(folder / "bare", model, optimizer)
        shutil.rmtree(folder / "bare")
        return seconds

    class Watch(library.TrainerCallback):  # type: ignore[misc]
        ended = before = 0.0

        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
        ) -> None:
            self.before = bare(model, optimizer) if state.global_step % 2 else 0.0
            os.sync()
            self.ended = perf_counter()

        def on_step_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
        ) -> None:
            blocking = perf_counter() - self.ended
            if not state.global_step:
                return
            wait_for(folder / f"checkpoint-{state.global_step}")
            total = perf_counter() - self.ended
            found.append({"blocking": blocking, "total": total, "bare": self.before or bare(model, optimizer)})
            shutil.rmtree(folder / f"checkpoint-{state.global_step - 1}", ignore_errors=True)

    data = build_dataset(8 * (size.saves + 2), size.width)
    model = build_model(size.width, size.layers)
    build_trainer(contender, folder, model, data, [Watch()], max_steps=size.saves + 2, save_steps=1).train()
    return found[1:]


def wait_for(checkpoint: Path, patience_s: float = 300.0) -> None:
    """Until a checkpoint has its name."""
    deadline = perf_counter() + patience_s
    while not checkpoint.is_dir():
        if perf_counter() > deadline:
            raise RuntimeError(f"{checkpoint.name} was not written")
        sleep(0.002)


# --- resuming --------------------------------------------------------------------------------------------------------


class Enough(Exception):  # noqa: N818
    """What is to be measured has happened."""


def measure_resumes(contender: str, size: Size, folder: Path) -> list[dict[str, float]]:
    """Seconds from the call to the end of the first update, at both places in turn; the first turn is left out."""
    library: Any = importlib.import_module(PACKAGES[contender])
    places = {"early": size.early, "late": size.late}

    class Save(library.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = state.global_step in places.values()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == size.late:
                raise Enough

    class Stop(library.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise Enough

    def run(callback: Any, work_s: float, checkpoint: str | None = None) -> float:
        data = build_dataset(8 * (size.late + 100), 16, work_s)
        options = {"max_steps": size.late + 50, "save_steps": 10**6}
        trainer = build_trainer(contender, folder, build_model(16, 2), data, [callback], **options)
        begin = perf_counter()
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except Enough:
            return perf_counter() - begin
        raise RuntimeError(f"{contender} ended before it was measured")

    run(Save(), 0.0)
    turns = [
        {name: run(Stop(), WORK_S, str(folder / f"checkpoint-{step}")) for name, step in places.items()}
        for _ in range(size.resumes + 1)
    ]
    return turns[1:]


# --- the comparison --------------------------------------------------------------------------------------------------

MEASURES = {"save": measure_saves, "resume": measure_resumes}


def measure_apart(what: str, contender: str, size: Size, place: Path) -> list[dict[str, float]]:
    """Measure in a new process, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        words = ["--measure", what, "--contender", contender, "--size", json.dumps(asdict(size)), "--folder", folder]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} failed ({what}):\n{done.stderr[-2000:]}")
    return list(json.loads(done.stdout.splitlines()[-1]))


def alternate(what: str, contenders: list[str], size: Size, place: Path) -> dict[str, list[dict[str, float]]]:
    """Every contender once a round; every other round in reverse, so that no one always comes first."""
    found: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
    for index in range(size.rounds):
        for contender in contenders if index % 2 == 0 else reversed(contenders):
            print(f"{what}, round {index + 1}/{size.rounds}: {contender}", file=sys.stderr, flush=True)
            found[contender] += measure_apart(what, contender, size, place)
    return found


def median(readings: list[dict[str, float]], name: str, over: str | None = None) -> float:
    """The median of a measurement, or of its ratio with another one of the same turn."""
    return statistics.median(reading[name] / (reading[over] if over else 1.0) for reading in readings)


def save_rows(found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """The table of saves."""
    rows = [["save", "training waits s", "in place after s", "bare write s", "waits / bare", "in place / bare"]]
    for contender, taken in found.items():
        seconds = [f"{median(taken, name):.3f}" for name in ("blocking", "total", "bare")]
        ratios = [f"{median(taken, name, 'bare'):.3f}x" for name in ("blocking", "total")]
        rows.append([contender, *seconds, *ratios])
    return rows


def resume_rows(found: dict[str, list[dict[str, float]]], size: Size) -> list[list[str]]:
    """The table of resumed runs."""
    rows = [["resume", f"at update {size.early:,} ms", f"at update {size.late:,} ms", "ratio"]]
    for contender, taken in found.items():
        times = [f"{median(taken, name) * 1e3:.1f}" for name in ("early", "late")]
        rows.append([contender, *times, f"{median(taken, 'late', 'early'):.3f}x"])
    return rows


def save_goals(found: dict[str, list[dict[str, float]]]) -> dict[str, tuple[float, float]]:
    """What was reached, and the most that it may be."""
    return {
        "save over the bare write": (median(found[SYNC], "total", "bare"), SYNC_GOAL),
        "waiting in the background over saving": (
            median(found[BACKGROUND], "blocking", "bare") / median(found[SYNC], "blocking", "bare"),
            BLOCKING_GOAL,
        ),
    }


def resume_goals(found: dict[str, list[dict[str, float]]]) -> dict[str, tuple[float, float]]:
    """What was reached, and the most that it may be."""
    return {"resuming late over early": (median(found[SYNC], "late", "early"), RESUME_GOAL)}


def table(rows: list[list[str]], markdown: bool) -> str:
    """Lay the rows out, in markdown or in aligned columns."""
    if markdown:
        head, *body = rows
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def verdict(goals: dict[str, tuple[float, float]]) -> str:
    """A line per goal."""
    return "\n".join(
        f"{name}: {value:.3f} (goal: at most {goal:g}) {'reached' if value <= goal else 'MISSED'}"
        for name, (value, goal) in goals.items()
    )


def available(contenders: list[str]) -> list[str]:
    """Those whose package is installed; the others are named on stderr, never dropped in silence."""
    missing = [name for name in contenders if importlib.util.find_spec(PACKAGES[name]) is None]
    for name in missing:
        print(f"left out: {name} (pip install {PACKAGES[name]})", file=sys.stderr)
    return [name for name in contenders if name not in missing]


def main() -> int:
    """Print the tables; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description="What checkpoints cost.")
    parser.add_argument("--only", nargs="+", choices=[*MEASURES], default=[*MEASURES], help="what to measure")
    parser.add_argument("--rounds", type=int, help="processes of each contender (default 3)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where checkpoints are written"
    )
    parser.add_argument("--markdown", action="store_true", help="print markdown tables")
    parser.add_argument("--quick", action="store_true", help="tiny, one round: does it run at all")
    parser.add_argument("--measure", choices=[*MEASURES], help=argparse.SUPPRESS)
    parser.add_argument("--contender", choices=[*PACKAGES], help=argparse.SUPPRESS)
    parser.add_argument("--size", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.contender, Size(**options.size), options.folder)))
        return 0

    chosen = QUICK if options.quick else Size()
    size = Size(**{**asdict(chosen), "rounds": options.rounds or chosen.rounds})
    goals: dict[str, tuple[float, float]] = {}
    if "save" in options.only:
        saves = alternate("save", available([SYNC, BACKGROUND, REFERENCE]), size, options.folder)
        print(table(save_rows(saves), options.markdown), end="\n\n")
        goals |= save_goals(saves)
    if "resume" in options.only:
        resumes = alternate("resume", available([SYNC, REFERENCE]), size, options.folder)
        print(table(resume_rows(resumes, size), options.markdown), end="\n\n")
        goals |= resume_goals(resumes)
    print(verdict(goals))
    return int(not options.quick and any(value > goal for value, goal in goals.values()))


if __name__ == "__main__":
    sys.exit(main())
