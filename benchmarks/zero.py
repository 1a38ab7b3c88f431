"""What a large model takes under DeepSpeed, beside the reference (transformers) with the same configuration.

    python benchmarks/zero.py             # a GPT of one billion parameters on every GPU here; needs one
    python benchmarks/zero.py --markdown  # the table as markdown
    python benchmarks/zero.py --quick     # a smoke run on the CPU: tiny; the numbers mean nothing

Stages 2 and 3 with the optimizer's states in the host's memory, stage 3 with the weights there as well. Each run is a job of
its own, one process for each GPU, in bf16; the libraries take turns. Tokens per second are those of the updates after the
first three; memory is the most that torch's allocator has given out on one device, or on the CPU what the process took.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIBRARIES = ("mainspring", "transformers")
WAYS = {
    "ZeRO-2, optimizer on the host": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "ZeRO-3, optimizer on the host": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
    "ZeRO-3, weights too": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
}
WARM_UP = 3
"""Updates that are not counted."""


@dataclass(frozen=True)
class Size:
    """A GPT and what it is fed. The default has 1.0 billion parameters."""

    layers: int = 18
    width: int = 2048
    heads: int = 16
    tokens: int = 1024
    batch: int = 4
    updates: int = 13


QUICK = Size(layers=2, width=32, heads=2, tokens=16, batch=2, updates=5)


@dataclass(frozen=True)
class Reading:
    """Tokens per second of one process, the bytes that it took, and the loss of the last update."""

    speed: float
    memory: int
    loss: float


def train(library: str, way: dict[str, Any], size: Size, quick: bool, folder: Path) -> Reading:
    """Train in this process, which a launcher may have started with others."""
    import torch
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel

    if quick:  # the host's optimizer would be compiled first
        way = {name: value for name, value in way.items() if name != "offload_optimizer"}
    module = __import__(library)
    same = {"compat": "5"} if library == "mainspring" else {}  # both count labels alike: the losses can be compared
    config = {
        "zero_optimization": way,
        "bf16": {"enabled": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        **({"zero_force_ds_cpu_optimizer": False} if quick else {}),
    }
    args = module.TrainingArguments(
        str(folder), deepspeed=config, bf16=True, max_steps=size.updates, per_device_train_batch_size=size.batch,
        logging_steps=size.updates, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=quick,
        gradient_checkpointing=not quick, dataloader_pin_memory=not quick, **same,
    )  # fmt: skip
    transformers.set_seed(0)
    shape = GPT2Config(
        n_layer=size.layers, n_embd=size.width, n_head=size.heads, n_positions=size.tokens, use_cache=False
    )
    rows = torch.randint(0, shape.vocab_size, (size.updates * size.batch * 8, size.tokens)).tolist()
    data = [{"input_ids": row, "labels": row} for row in rows]
    times: list[float] = []

    class Clock(module.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    trainer = module.Trainer(GPT2LMHeadModel(shape), args, train_dataset=data, callbacks=[Clock()])
    done = trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DeepSpeedEngine", "DeepSpeed has not trained"
    step = statistics.median(
        after - before for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)
    )
    on_gpu = torch.cuda.is_available()
    memory = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Reading(size.batch * size.tokens / step, memory, done.training_loss)


def measure(library: str, way: str, quick: bool, processes: int) -> Reading:
    """One job."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        words = ["--library", library, "--way", way, "--answer", str(answer), *(["--quick"] if quick else [])]
        done = subprocess.run(
            [sys.executable, *launcher, str(Path(__file__).resolve()), *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise SystemExit(f"{library}, {way}: failed\n{done.stdout[-4000:]}")
        return Reading(**json.loads(answer.read_text()))


def table(readings: dict[str, dict[str, Reading]], markdown: bool) -> str:
    """A row for each way: memory and speed of ours, and in multiples of the reference's."""
    head = ["way", "memory, GB", "of the reference's", "tokens/s per process", "of the reference's"]
    rows = [head]
    for way, found in readings.items():
        ours, theirs = (found[library] for library in LIBRARIES)
        rows.append(
            [way, f"{ours.memory / 1e9:.2f}", f"{ours.memory / theirs.memory:.3f}", f"{ours.speed:.0f}",
             f"{ours.speed / theirs.speed:.3f}"]
        )  # fmt: skip
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, or be one of the processes measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    size = QUICK if asked.quick else Size()
    if asked.library is not None:
        folder = Path(asked.answer).parent / "run"
        reading = train(asked.library, WAYS[asked.way], size, asked.quick, folder)
        if os.environ.get("RANK", "0") == "0":
            Path(asked.answer).write_text(json.dumps(asdict(reading)))
        return 0
    import torch

    if not asked.quick and not torch.cuda.is_available():
        print("there is no GPU here, and on a CPU this takes days: --quick shows that it runs", file=sys.stderr)
        return 2
    processes = 1 if asked.quick else torch.cuda.device_count()
    readings = {way: {library: measure(library, way, asked.quick, processes) for library in LIBRARIES} for way in WAYS}
    print(table(readings, asked.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
