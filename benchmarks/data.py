"""How fast ragged text is trained on: real tokens per second with padding, grouping, a token budget and packing.

    python benchmarks/data.py                      # the table
    python benchmarks/data.py --markdown           # the same as markdown, for the README
    python benchmarks/data.py --quick              # a smoke run: few texts, one round

A causal language model is trained on texts of log-normal lengths, as real ones have them: most are short, some are many
times as long. One thread, logging, evaluation, saving and progress bars off. Every contender trains on every text once an
epoch, with the same model, fused AdamW, a linear schedule and clipping to a norm of 1.0, and batches of about as many
positions: what is padding among them is what the contenders differ in.

Each contender runs in a process of its own. The processes of all contenders alternate over several rounds, so that a
machine that slows down slows all of them; ratios are taken within a round, then their median. A process measures the last
of two epochs: imports, set-up, the measuring of lengths and warm-up do not count.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from time import process_time
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

BASELINE = "transformers: padding"
"""What the ratios compare with: the reference's default."""

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    BASELINE: ("transformers", {}),
    "transformers: group_by_length": ("transformers", {"train_sampling_strategy": "group_by_length"}),
    "mainspring: padding": ("mainspring", {}),
    "mainspring: group_by_length": ("mainspring", {"train_sampling_strategy": "group_by_length"}),
    "mainspring: token_budget": ("mainspring", {"train_sampling_strategy": "token_budget"}),
    "mainspring: pack_sequences": ("mainspring", {"pack_sequences": True}),
}
"""Contender -> its package, and the options that make it."""

GOAL = 1.8
"""What the best of ours is to reach, as a multiple of the baseline."""


@dataclass(frozen=True)
class Workload:
    """The texts and the model.

    Attributes:
        texts: How many.
        median: Their median length in tokens, before clipping.
        sigma: Standard deviation of the logarithm of their lengths.
        longest: Tokens of the longest, and so of a packed row.
        batch_size: Texts in a padded batch.
        rows: Rows in a packed batch, which have about as many positions as a padded one.
        width: Of the model.
        layers: Of the model.
    """

    texts: int
    median: int = 60
    sigma: float = 0.8
    longest: int = 256
    batch_size: int = 16
    rows: int = 12
    width: int = 192
    layers: int = 2

    @property
    def budget(self) -> int:
        """Positions of a batch, where they are counted rather than texts."""
        return self.rows * self.longest


FULL = Workload(512)
QUICK = Workload(24, median=8, longest=24, batch_size=4, rows=2, width=16, layers=1)
VOCABULARY = 1000


@dataclass(frozen=True)
class Reading:
    """What one process measured in its last epoch.

    Attributes:
        tokens_per_second: Tokens of texts, padding not counted, by processor time: other programs do not count.
        padding: The share of the positions fed to the model that were padding.
    """

    tokens_per_second: float
    padding: float


# --- the common work -------------------------------------------------------------------------------------------------


def build_texts(workload: Workload) -> list[dict[str, Any]]:
    """The same texts for everyone, in memory."""
    import numpy as np
    import torch

    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(workload.median), workload.sigma, workload.texts), 4, workload.longest)
    lengths[0] = workload.longest
    texts = [torch.from_numpy(generator.integers(1, VOCABULARY, int(length))) for length in lengths]
    return [{"input_ids": text, "labels": text} for text in texts]


def build_model(workload: Workload) -> Any:
    """A small Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=workload.width,
        intermediate_size=3 * workload.width,
        num_hidden_layers=workload.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=workload.longest,
    )
    return LlamaForCausalLM(config)


def collate(texts: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad to the longest text of the batch."""
    import torch

    ids = [text["input_ids"] for text in texts]

    def pad(rows: list[Any], value: int) -> Any:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    mask = pad([torch.ones_like(row) for row in ids], 0)
    return {"input_ids": pad(ids, 0), "attention_mask": mask, "labels": pad([text["labels"] for text in texts], -100)}


class Clock:
    """Takes the processor time of the last epoch, and counts the positions that are fed to the model in it."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0
        self.positions = 0

    def begin(self) -> None:
        """An epoch begins."""
        self.started, self.positions = process_time(), 0

    def end(self) -> None:
        """It has ended."""
        self.seconds = process_time() - self.started

    def count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Before each forward pass."""
        self.positions += kwargs["input_ids"].numel()


# --- one process -----------------------------------------------------------------------------------------------------


def options_of(contender: str, workload: Workload) -> dict[str, Any]:
    """The options that a contender adds to the common ones."""
    special = dict(CONTENDERS[contender][1])
    if special.get("train_sampling_strategy") == "token_budget":
        special["max_tokens_per_batch"] = workload.budget
    rows = workload.rows if special.get("pack_sequences") else workload.batch_size
    return {"per_device_train_batch_size": rows, **special}


def measure_here(contender: str, workload: Workload) -> Reading:
    """Run `contender` in this process."""
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    library: Any = importlib.import_module(CONTENDERS[contender][0])
    clock, texts, model = Clock(), build_texts(workload), build_model(workload)
    model.register_forward_pre_hook(clock.count, with_kwargs=True)

    class Ticker(library.TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.begin()

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            clock.end()

    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            num_train_epochs=2,
            optim="adamw_torch_fused",
            logging_strategy="no",
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options_of(contender, workload),
        )
        packs = CONTENDERS[contender][1].get("pack_sequences")
        trainer = library.Trainer(
            model=model,
            args=args,
            train_dataset=texts,
            data_collator=None if packs else collate,
            callbacks=[Ticker()],
        )
        trainer.train()
    tokens = sum(len(text["input_ids"]) for text in texts)
    return Reading(tokens / clock.seconds, 1 - tokens / clock.positions)


def measure_apart(contender: str, workload: Workload) -> Reading:
    """Run `contender` in a new process of one thread."""
    command = [sys.executable, __file__, "--measure", contender, "--workload", json.dumps(asdict(workload))]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-2000:]}")
    return Reading(**json.loads(done.stdout.splitlines()[-1]))


# --- the comparison --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        contender: Whose line.
        tokens_per_second: Median over the rounds.
        padding: The share of padding in its last epoch.
        ratio: Median over the rounds of its speed, as a multiple of that round's baseline.
    """

    contender: str
    tokens_per_second: float
    padding: float
    ratio: float


def alternate(contenders: list[str], workload: Workload, rounds: int) -> Iterator[tuple[str, Reading]]:
    """Measure every contender once a round; every other round in reverse, so that no one always comes first."""
    for index in range(rounds):
        for contender in contenders if index % 2 == 0 else reversed(contenders):
            print(f"round {index + 1}/{rounds}: {contender}", file=sys.stderr, flush=True)
            yield contender, measure_apart(contender, workload)


def compare(contenders: list[str], workload: Workload, rounds: int) -> list[Row]:
    """Measure and summarise."""
    readings: dict[str, list[Reading]] = {contender: [] for contender in contenders}
    for contender, reading in alternate(contenders, workload, rounds):
        readings[contender].append(reading)
    return [_row(contender, readings[contender], readings[BASELINE]) for contender in contenders]


def _row(contender: str, own: list[Reading], baseline: list[Reading]) -> Row:
    pairs = zip(own, baseline, strict=True)
    return Row(
        contender,
        tokens_per_second=statistics.median(reading.tokens_per_second for reading in own),
        padding=own[-1].padding,
        ratio=statistics.median(mine.tokens_per_second / base.tokens_per_second for mine, base in pairs),
    )


def table(rows: list[Row], workload: Workload, markdown: bool) -> str:
    """Lay the rows out, in markdown or in aligned columns."""
    head = ["order", "real tokens/s", "padding", "ratio"]
    body = [[row.contender, f"{row.tokens_per_second:,.0f}", f"{row.padding:.1%}", f"{row.ratio:.2f}x"] for row in rows]
    title = (
        f"{workload.texts} texts of log-normal lengths (median {workload.median}, longest {workload.longest} tokens)"
    )
    if markdown:
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
        return "\n".join([f"**{title}**", "", *("| " + " | ".join(line) + " |" for line in lines)])
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    aligned = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *body]]
    return "\n".join([title, *aligned])


def best_of_ours(rows: list[Row]) -> Row | None:
    """The fastest line of this package."""
    ours = [row for row in rows if CONTENDERS[row.contender][0] == "mainspring"]
    return max(ours, key=lambda row: row.ratio, default=None)


def available(contenders: list[str]) -> list[str]:
    """Those whose package is installed; the others are named on stderr, never dropped in silence."""
    missing = {name for name in contenders if importlib.util.find_spec(CONTENDERS[name][0]) is None}
    for name in sorted(missing):
        print(f"left out: {name} (pip install {CONTENDERS[name][0]})", file=sys.stderr)
    return [name for name in contenders if name not in missing]


def main() -> int:
    """Parse the command line, print the table, and say whether the goal is reached."""
    parser = argparse.ArgumentParser(description="Real tokens per second on ragged text.")
    parser.add_argument("--rounds", type=int, help="rounds of processes (default 3)")
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS], help="orders to compare (default: all)")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    parser.add_argument("--quick", action="store_true", help="few texts, one round: does it run at all")
    parser.add_argument("--measure", choices=[*CONTENDERS], help=argparse.SUPPRESS)
    parser.add_argument("--workload", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()

    workload = QUICK if options.quick else FULL
    if options.measure:
        print(json.dumps(asdict(measure_here(options.measure, Workload(**options.workload)))))
        return 0
    wanted = options.contenders or [*CONTENDERS]
    contenders = available([BASELINE, *(name for name in wanted if name != BASELINE)])
    rows = compare(contenders, workload, options.rounds or (1 if options.quick else 3))
    print(table(rows, workload, options.markdown))
    best = best_of_ours(rows)
    if options.quick or best is None:
        return 0
    reached = best.ratio >= GOAL
    print(
        f"\n{best.contender}: {best.ratio:.2f}x {BASELINE}; the goal, {GOAL}x, is {'reached' if reached else 'missed'}"
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
