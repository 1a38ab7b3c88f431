"""What an evaluation costs: time and peak memory, where a metric asks for all predictions and where it streams.

    python benchmarks/evaluation.py                  # the table (some minutes, most of them the reference's)
    python benchmarks/evaluation.py --markdown       # the same as markdown
    python benchmarks/evaluation.py --quick          # a smoke run: tiny, one round; the numbers mean nothing

20,000 samples of 2,000 classes in batches of eight, through a model so small that what is measured is what becomes of
its outputs: 160 MB of logits.

- `all`: `compute_metrics` is a function of all predictions.
- `file`: the same, with `eval_memory_limit=0`: the predictions lie in a file.
- `streaming`: `compute_metrics` is a streaming metric.
- `large`: streaming again, with 100,000 samples.

Each measurement is a process of its own, in turns. Memory is what the process holds at its peak beyond what it held
before, after a small evaluation that is not measured; the pages of a mapped file that were read count too, though the
system takes them back when it needs them. All that evaluate the same samples must find the same score. The exit status
is 1 where a goal is missed, or could not be compared with a reference that is not installed, unless `--quick` was said.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

REFERENCE = "transformers: all"
CONTENDERS = ("mainspring: all", "mainspring: file", "mainspring: streaming", REFERENCE, "mainspring: large")

TIME_GOAL = 0.7
"""Of the reference's time, for every contender that evaluates as many samples."""
MEMORY_GOALS = {"mainspring: all": 0.6, "mainspring: streaming": 0.1}
"""Of the reference's growth."""
LARGE_GOAL_MIB = 300.0
"""Growth with 100,000 samples."""
SAME_SCORE = 1e-9
"""What scores may differ by: they are the same counts, divided."""


@dataclass(frozen=True)
class Size:
    """How much is evaluated.

    Attributes:
        rows: Samples.
        large: Samples of the large evaluation.
        classes: Of the predictions.
        rounds: Processes of each contender.
    """

    rows: int = 20_000
    large: int = 100_000
    classes: int = 2_000
    rounds: int = 3


QUICK = Size(rows=64, large=96, classes=10, rounds=1)


@dataclass(frozen=True)
class Reading:
    """One evaluation: seconds, growth in MiB, and the score, which all must agree on."""

    seconds: float
    growth_mib: float
    accuracy: float


# --- in the measured process -----------------------------------------------------------------------------------------


def peak_mib(reset: bool = False) -> float:
    """The most memory that this process has held, in MiB; with `reset`, it is what it holds now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def build_model(classes: int) -> Any:
    """A linear classifier."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, classes)

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            logits = self.head(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    return Classifier()


def build_dataset(rows: int, classes: int) -> Any:
    """Rows that are made when they are asked for."""
    import torch
    from torch.utils.data import Dataset

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return rows

        def __getitem__(self, index: int) -> dict[str, Any]:
            x = torch.sin(torch.arange(8) * float(index + 1))
            return {"x": x, "labels": index % classes}

    return Rows()


def accuracy(prediction: Any) -> dict[str, float]:
    """Of all predictions at once."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def evaluate(contender: str, rows: int, classes: int, folder: str) -> Reading:
    """One evaluation in this process."""
    package, _, how = contender.partition(": ")
    library: Any = importlib.import_module(package)
    metric: Any = accuracy
    options: dict[str, Any] = {"eval_memory_limit": 0} if how == "file" else {}
    if how in ("streaming", "large"):
        from mainspring.evaluation import StreamingAccuracy

        metric = StreamingAccuracy()
    args = library.TrainingArguments(
        output_dir=folder, use_cpu=True, report_to="none", disable_tqdm=True, per_device_eval_batch_size=8, **options
    )
    trainer = library.Trainer(model=build_model(classes), args=args, compute_metrics=metric)
    trainer.evaluate(build_dataset(min(rows, 512), classes))
    before = peak_mib(reset=True)
    begin = perf_counter()
    found = trainer.evaluate(build_dataset(rows, classes))
    seconds = perf_counter() - begin
    return Reading(seconds, peak_mib() - before, found["eval_accuracy"])


# --- in the process that compares ------------------------------------------------------------------------------------


def measure(contender: str, size: Size, folder: Path) -> Reading:
    """One evaluation in a process of its own."""
    rows = size.large if is_large(contender) else size.rows
    command = [sys.executable, str(Path(__file__).resolve()), "--one", contender, str(rows), str(size.classes)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-2000:]}")
    return Reading(**json.loads(done.stdout.splitlines()[-1]))


def compare(contenders: list[str], size: Size, folder: Path) -> dict[str, Reading]:
    """The medians over the rounds; every other round goes in reverse."""
    readings: dict[str, list[Reading]] = {contender: [] for contender in contenders}
    for index in range(size.rounds):
        for contender in contenders if index % 2 == 0 else reversed(contenders):
            reading = measure(contender, size, folder)
            readings[contender].append(reading)
            told = f"{reading.seconds:.1f} s, {reading.growth_mib:.0f} MiB"
            print(f"round {index + 1}/{size.rounds}: {contender}: {told}", file=sys.stderr, flush=True)
    require_one_score(readings)
    return {
        contender: Reading(
            statistics.median(one.seconds for one in taken),
            statistics.median(one.growth_mib for one in taken),
            taken[0].accuracy,
        )
        for contender, taken in readings.items()
    }


def is_large(contender: str) -> bool:
    """Whether it evaluates more samples than the others, and so is compared with none of them."""
    return contender.endswith("large")


def require_one_score(readings: dict[str, list[Reading]]) -> None:
    """Raise RuntimeError where the same samples had different scores: such times are of different work."""
    for large in (False, True):
        scores = {name: [one.accuracy for one in taken] for name, taken in readings.items() if is_large(name) == large}
        every = [score for those in scores.values() for score in those]
        if not all(abs(score - every[0]) <= SAME_SCORE for score in every):  # NaN is no score
            raise RuntimeError(f"the scores differ: {scores}")


def table(found: dict[str, Reading], markdown: bool) -> str:
    """A line per contender: seconds, growth, and both over the reference's."""
    reference = found.get(REFERENCE)
    head = ["", "s", "MiB", "time", "memory"]
    body = []
    for contender, reading in found.items():
        alike = reference is not None and not is_large(contender)
        ratios = (
            [f"{reading.seconds / reference.seconds:.2f}x", f"{reading.growth_mib / reference.growth_mib:.2f}x"]
            if reference is not None and alike
            else ["", ""]
        )
        body.append([contender, f"{reading.seconds:.1f}", f"{reading.growth_mib:.0f}", *ratios])
    if markdown:
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *body]
    )


def missed(found: dict[str, Reading]) -> list[str]:
    """The goals that were not reached, and those that could not be looked at."""
    behind = missed_beside(found[REFERENCE], found) if REFERENCE in found else [f"not compared: no {REFERENCE}"]
    if found["mainspring: large"].growth_mib > LARGE_GOAL_MIB:
        behind.append("memory of mainspring: large")
    return behind


def missed_beside(reference: Reading, found: dict[str, Reading]) -> list[str]:
    """The goals in terms of the reference that were not reached."""
    behind = []
    for contender, reading in found.items():
        if contender == REFERENCE or is_large(contender):
            continue
        if reading.seconds > TIME_GOAL * reference.seconds:
            behind.append(f"time of {contender}")
        if reading.growth_mib > MEMORY_GOALS.get(contender, math.inf) * reference.growth_mib:
            behind.append(f"memory of {contender}")
    return behind


def available() -> list[str]:
    """The contenders whose library is installed; others are named on stderr, never dropped in silence."""
    missing = [name for name in CONTENDERS if importlib.util.find_spec(name.partition(":")[0]) is None]
    for contender in missing:
        print(f"left out: {contender} (pip install {contender.partition(':')[0]})", file=sys.stderr)
    return [contender for contender in CONTENDERS if contender not in missing]


def main() -> int:
    """Parse the command line and print the table; return the exit status, 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description="What an evaluation costs.")
    parser.add_argument("--rounds", type=int, help="rounds of processes (default 3)")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    parser.add_argument("--quick", action="store_true", help="tiny, one round: does it run at all")
    parser.add_argument("--one", nargs=3, metavar=("CONTENDER", "ROWS", "CLASSES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.one:
            contender, rows, classes = options.one
            print(json.dumps(asdict(evaluate(contender, int(rows), int(classes), folder))))
            return 0
        size = QUICK if options.quick else Size(rounds=options.rounds or Size.rounds)
        found = compare(available(), size, Path(folder))
    print(table(found, options.markdown))
    behind = missed(found)
    print(f"goals missed: {', '.join(behind) or 'none'}")
    return int(bool(behind) and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
