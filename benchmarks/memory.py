"""What ways to train cost in memory.

    python benchmarks/memory.py             # the tables; needs 3 GB of memory
    python benchmarks/memory.py --markdown  # as markdown
    python benchmarks/memory.py --quick     # a smoke run: tiny; the numbers mean nothing

- `optimizer in backward`: the most bytes that gradients and optimizer states have at once, over one update, with the
  optimizer stepping after the backward pass and inside it (`optimizer_in_backward`). Counted tensor by tensor at each
  gradient, so that neither the allocator nor the machine's other work shows.

- `large vocabulary`: the most memory that a training step of a small language model with 128,000 classes takes beyond the
  weights, with logits and without (`chunked_cross_entropy`). Counted tensor by tensor, at each operation, and by what the
  system says of the process, which is one of its own for each way. torch's operator does not show its own chunks to the
  count; `in older torch` is without that operator.

Every way of a part trains from the same weights. The exit status is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLAIN, INSIDE = "after the backward pass", "inside it"
GRADIENT_GOAL = 0.25
"""Of the gradients that live at once after the backward pass, what may live at once inside it."""

OPTIMIZERS = ("sgd", "adamw_torch", "adafactor", "rmsprop")


@dataclass(frozen=True)
class Size:
    """How large the model is.

    Attributes:
        width: Of each layer.
        layers: How many there are.
    """

    width: int = 1024
    layers: int = 16


QUICK = Size(width=16, layers=8)


@dataclass(frozen=True)
class Reading:
    """What one way took, in bytes.

    Attributes:
        weights: Of the parameters.
        gradients: The most that lived at once.
        states: Of the optimizer, after the update.
    """

    weights: int
    gradients: int
    states: int


def build_model(size: Size) -> Any:
    """A plain stack of linear layers; its forward gives a loss."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(size.width, size.width, bias=False) for _ in range(size.layers)))

        def forward(self, x: Any, labels: Any) -> dict[str, Any]:
            return {"loss": (self.layers(x).mean(-1) - labels).square().mean()}

    return Stack()


def measure(optim: str, way: str, size: Size, folder: Path) -> Reading:
    """Train two updates, and count."""
    import torch

    from mainspring import PrinterCallback, Trainer, TrainingArguments

    model = build_model(size)
    alive: list[int] = []

    def count(_: Any) -> None:
        alive.append(sum(bytes_of(parameter.grad) for parameter in model.parameters()))

    for parameter in model.parameters():  # before the optimizer's own hooks: the gradient that it frees is counted
        parameter.register_post_accumulate_grad_hook(count)
    args = TrainingArguments(
        str(folder),
        optim=optim,
        max_steps=2,
        max_grad_norm=0.0,
        per_device_train_batch_size=4,
        optimizer_in_backward=way == INSIDE,
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"x": torch.ones(size.width), "labels": torch.tensor(0.5)} for _ in range(8)]
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    states = sum(bytes_of(tensor) for tensor in tensors(trainer.optimizer.state_dict()["state"]))
    return Reading(sum(bytes_of(parameter) for parameter in model.parameters()), max(alive), states)


def tensors(state: Any) -> Iterator[Any]:
    """Every tensor of a state."""
    if isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif hasattr(state, "element_size"):
        yield state


def bytes_of(tensor: Any) -> int:
    """Of a tensor, or of nothing."""
    return 0 if tensor is None else int(tensor.numel() * tensor.element_size())


def compare(size: Size) -> dict[str, dict[str, Reading]]:
    """Each optimizer in both ways."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            optim: {way: measure(optim, way, size, Path(folder)) for way in (PLAIN, INSIDE)} for optim in OPTIMIZERS
        }


# ---- large vocabularies ----

WITH, WITHOUT, OLDER = "with logits", "without", "without, in older torch"
LOGITS_GOAL, GRADIENT_TOLERANCE = 0.35, 1e-5
"""Of a step with logits, what one without may take; and how far its gradients may be from that one's, relatively."""


@dataclass(frozen=True)
class Text:
    """How large the language model and its batch are."""

    classes: int = 128_000
    width: int = 256
    tokens: int = 1024


SHORT = Text(classes=4_000, width=16, tokens=128)


@dataclass(frozen=True)
class Step:
    """What a training step took beyond the weights, in bytes, and its time.

    Attributes:
        counted: Of all tensors that lived at once.
        resident: Of the process, as the system counts.
        seconds: Of the step that was not counted.
        gap: How far its gradients are from those with logits, relatively.
    """

    counted: int
    resident: int
    seconds: float
    gap: float = 0.0


def take_step(way: str, size: Text, folder: Path) -> Step:
    """Train two updates: in the first the process is measured, in the second tensors are counted. Keeps the gradients."""
    import time

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from mainspring import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    if way == OLDER and hasattr(torch.nn.functional, "linear_cross_entropy"):
        del torch.nn.functional.linear_cross_entropy
    measured: dict[str, Any] = {}

    class Measure(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            measured["live"] = live_storages()
            if "resident" in measured:
                measured["live"].__enter__()
            else:
                measured["before"], measured["began"] = resident(restart=True), time.perf_counter()

        def on_pre_optimizer_step(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            if "resident" in measured:
                measured["live"].__exit__(None, None, None)
                return
            measured["seconds"] = time.perf_counter() - measured["began"]
            measured["resident"] = resident() - measured["before"]
            torch.save([parameter.grad for parameter in model.parameters()], folder / f"{way}.pt")

    torch.manual_seed(0)
    shape = {"n_embd": size.width, "n_layer": 1, "n_head": 2, "n_positions": size.tokens, "vocab_size": size.classes}
    model = GPT2LMHeadModel(
        GPT2Config(**shape, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    )
    args = TrainingArguments(
        str(folder),
        chunked_cross_entropy=way != WITH,
        max_steps=2,
        learning_rate=0.0,
        optim="sgd",
        max_grad_norm=0.0,
        per_device_train_batch_size=1,
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    text = torch.randint(size.classes, (size.tokens,))
    trainer = Trainer(model, args, train_dataset=[{"input_ids": text, "labels": text}] * 2, callbacks=[Measure()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return Step(measured["live"].peak, measured["resident"], measured["seconds"])


def live_storages() -> Any:
    """A context that notes the most bytes of storages, made within it, that live at once."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.known: dict[int, tuple[Any, int]] = {}
            self.peak = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            before = {
                one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if hasattr(one, "untyped_storage")
            }
            made = func(*args, **(kwargs or {}))
            for storage in (one.untyped_storage() for one in tree_leaves(made) if hasattr(one, "untyped_storage")):
                if storage._cdata not in before:
                    self.known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.known = {key: one for key, one in self.known.items() if not one[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.known.values()))
            return made

    return Live()


def resident(restart: bool = False) -> int:
    """The most bytes of memory that this process has had since `restart`, or has at the restart."""
    if restart:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def compare_steps(size: Text) -> dict[str, Step]:
    """Each way in a process of its own, one after another."""
    import torch

    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in (WITH, WITHOUT, OLDER):
            task = json.dumps([way, vars(size), name])
            child = subprocess.run(
                [sys.executable, __file__, "--step", task], stdout=subprocess.PIPE, check=True, text=True
            )
            step = json.loads(child.stdout.splitlines()[-1])
            gradients, plain = (torch.load(folder / f"{kind}.pt", weights_only=True) for kind in (way, WITH))
            gaps = [float((a - b).norm() / b.norm()) for a, b in zip(gradients, plain, strict=True) if b.norm() > 0]
            found[way] = Step(**{**step, "gap": max(gaps)})
    return found


def rows_of_steps(found: dict[str, Step]) -> list[list[str]]:
    """The table, in megabytes and beside the step with logits."""
    rows = [["loss", "tensors at once", "memory of the process", "seconds", "gradients differ by"]]
    for way, step in found.items():
        sizes = [
            f"{getattr(step, kind) / 1e6:.0f} MB ({getattr(step, kind) / getattr(found[WITH], kind):.0%})"
            for kind in ("counted", "resident")
        ]
        rows.append([way, *sizes, f"{step.seconds:.1f}", f"{step.gap:.1e}"])
    return rows


def misses_of_steps(found: dict[str, Step]) -> list[str]:
    """The goals that were not reached."""
    plain, missed = found[WITH], []
    for way, step in found.items():
        if way == WITH:
            continue
        for kind in ("counted", "resident"):
            share = getattr(step, kind) / getattr(plain, kind)
            if share > LOGITS_GOAL:
                missed.append(f"{way}: {share:.2f} of the memory with logits ({kind}), goal {LOGITS_GOAL}")
        if not step.gap <= GRADIENT_TOLERANCE:
            missed.append(f"{way}: gradients differ by {step.gap:.1e}, goal {GRADIENT_TOLERANCE}")
    return missed


def rows_of(found: dict[str, dict[str, Reading]]) -> list[list[str]]:
    """The table, in multiples of the weights."""
    rows = [["optimizer", *(f"gradients and states, {way}" for way in (PLAIN, INSIDE)), "of which gradients", "less"]]
    for optim, ways in found.items():
        plain, inside = ways[PLAIN], ways[INSIDE]
        whole = [reading.gradients + reading.states for reading in (plain, inside)]
        gradients = f"{plain.gradients / plain.weights:.2f} / {inside.gradients / inside.weights:.2f}"
        less = f"{1 - whole[1] / whole[0]:.0%}"
        rows.append([optim, *(f"{total / plain.weights:.2f} x weights" for total in whole), gradients, less])
    return rows


def misses(found: dict[str, dict[str, Reading]]) -> list[str]:
    """The goals that were not reached."""
    return [
        f"{optim}: {ways[INSIDE].gradients / ways[PLAIN].gradients:.2f} of the gradients live at once, goal {GRADIENT_GOAL}"
        for optim, ways in found.items()
        if ways[INSIDE].gradients > GRADIENT_GOAL * ways[PLAIN].gradients or ways[INSIDE].states != ways[PLAIN].states
    ]


def text_of(rows: list[list[str]], markdown: bool) -> str:
    """Rows as a table."""
    if markdown:
        lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
        return "\n".join(f"| {' | '.join(row)} |" for row in lines)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description="What ways to train cost in memory.")
    parser.add_argument("--quick", action="store_true", help="a smoke run: tiny; the numbers mean nothing")
    parser.add_argument("--markdown", action="store_true", help="print the tables as markdown")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args(argv)
    if options.step:
        way, size, folder = json.loads(options.step)
        print(json.dumps(vars(take_step(way, Text(**size), Path(folder)))))
        return 0
    found = compare(QUICK if options.quick else Size())
    steps = compare_steps(SHORT if options.quick else Text())
    print(text_of(rows_of(found), options.markdown), text_of(rows_of_steps(steps), options.markdown), sep="\n\n")
    missed = [*misses(found), *(misses_of_steps(steps) if not options.quick else ())]
    for miss in missed:
        print(f"missed: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
