"""What options cost before anything runs: importing them, building them, and a script's `--help`.

    python benchmarks/arguments.py                  # the table
    python benchmarks/arguments.py --markdown       # the same as markdown
    python benchmarks/arguments.py --quick          # a smoke run: one round

Each measurement is a process of its own. The processes of both libraries alternate over several rounds, and the medians
over the rounds are compared.

- `import`: `from mainspring import HfArgumentParser, TrainingArguments`, inside the process.
- `first`: the first `TrainingArguments(output_dir="x")` after that.
- `build`: the same again, the median of many.
- `help`: the whole process of a script that parses its command line with `HfArgumentParser(TrainingArguments)`, called
  with `--help`, from its start to its exit.

The exit status is 1 where a goal is missed, unless `--quick` was said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter

MAINSPRING = "mainspring"
PACKAGES = (MAINSPRING, "transformers")

GOALS = {"first": 1e-3, "build": 1e-3, "help": 0.3}
"""Seconds at most."""

SCRIPT = """\
from {package} import HfArgumentParser, TrainingArguments

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
"""

INSIDE = """\
import json
import statistics
import sys
import time
import warnings

warnings.simplefilter("ignore")
begin = time.perf_counter()
from {package} import HfArgumentParser, TrainingArguments

times = [time.perf_counter() - begin]
for _ in range({builds} + 1):
    begin = time.perf_counter()
    TrainingArguments(output_dir="x")
    times.append(time.perf_counter() - begin)
imported, first, *others = times
print(json.dumps({{"import": imported, "first": first, "build": statistics.median(others)}}))
"""

LOADED = """\
import contextlib
import json
import os
import runpy
import sys

script, sys.argv = sys.argv[1], [sys.argv[1], "--help"]
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.suppress(SystemExit):
    runpy.run_path(script, run_name="__main__")
print(json.dumps("torch" in sys.modules))
"""


@dataclass(frozen=True)
class Reading:
    """Seconds of one round."""

    import_: float
    first: float
    build: float
    help: float


def python(*words: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def last_value(printed: str) -> object:
    """The JSON value in the last line."""
    return json.loads(printed.splitlines()[-1])


def measure(package: str, builds: int, folder: Path) -> Reading:
    """One round of one library."""
    inside = last_value(python("-c", INSIDE.format(package=package, builds=builds)))
    assert isinstance(inside, dict)
    script = script_of(package, folder)
    begin = perf_counter()
    printed = python(str(script), "--help")
    took = perf_counter() - begin
    if "--learning_rate" not in printed:
        raise RuntimeError(f"{package}: --help does not list the options")
    return Reading(inside["import"], inside["first"], inside["build"], took)


def script_of(package: str, folder: Path) -> Path:
    """The script whose `--help` is timed."""
    script = folder / f"script_{package}.py"
    script.write_text(SCRIPT.format(package=package))
    return script


def loads_torch(package: str, folder: Path) -> bool:
    """Whether `--help` imports torch."""
    return bool(last_value(python("-c", LOADED, str(script_of(package, folder)))))


def compare(packages: list[str], rounds: int, builds: int, folder: Path) -> dict[str, Reading]:
    """The medians over the rounds; every other round goes in reverse, so that no library always comes first."""
    readings: dict[str, list[Reading]] = {package: [] for package in packages}
    for index in range(rounds):
        for package in packages if index % 2 == 0 else reversed(packages):
            print(f"round {index + 1}/{rounds}: {package}", file=sys.stderr, flush=True)
            readings[package].append(measure(package, builds, folder))
    names = [field.name for field in fields(Reading)]
    return {
        package: Reading(*(statistics.median(getattr(reading, name) for reading in taken) for name in names))
        for package, taken in readings.items()
    }


def table(found: dict[str, Reading], markdown: bool) -> str:
    """A line per measurement: milliseconds of each library, their ratio, and the goal."""
    packages = [*found]
    head = ["", *(f"{package} ms" for package in packages), *(["ratio"] if len(packages) > 1 else []), "goal ms"]
    body = []
    for field in fields(Reading):
        name = field.name.rstrip("_")
        seconds = [getattr(found[package], field.name) for package in packages]
        ratio = [f"{seconds[0] / seconds[1]:.3f}x"] if len(seconds) > 1 else []
        goal = f"{GOALS[name] * 1e3:g}" if name in GOALS else ""
        body.append([name, *(f"{value * 1e3:.3g}" for value in seconds), *ratio, goal])
    if markdown:
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *body]
    )


def missed(reading: Reading) -> list[str]:
    """The goals that were not reached."""
    return [name for name, goal in GOALS.items() if getattr(reading, name) > goal]


def available() -> list[str]:
    """The libraries that are installed; the other is named on stderr, never dropped in silence."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    for package in missing:
        print(f"left out: {package} (pip install {package})", file=sys.stderr)
    return [package for package in PACKAGES if package not in missing]


def main() -> int:
    """Parse the command line and print the table; return the exit status, 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description="What options cost before anything runs.")
    parser.add_argument("--rounds", type=int, help="rounds of processes (default 7)")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    parser.add_argument("--quick", action="store_true", help="one round: does it run at all")
    options = parser.parse_args()
    rounds, builds = (1, 5) if options.quick else (7, 500)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)  # nothing here is to be imported by chance
        found = compare(available(), options.rounds or rounds, builds, folder)
        with_torch = loads_torch(MAINSPRING, folder)
    print(table(found, options.markdown))
    print(f"\n--help imports torch: {'yes' if with_torch else 'no'}")
    behind = missed(found[MAINSPRING])
    print(f"goals missed: {', '.join(behind) or 'none'}")
    return int(bool(behind) and not options.quick)  # one round says little


if __name__ == "__main__":
    sys.exit(main())
