"""What ways to train cost in memory.

    python benchmarks/memory.py             # the table; needs 2 GB of memory
    python benchmarks/memory.py --markdown  # as markdown
    python benchmarks/memory.py --quick     # a smoke run: tiny; the numbers mean nothing

- `optimizer in backward`: the most bytes that gradients and optimizer states have at once, over one update, with the
  optimizer stepping after the backward pass and inside it (`optimizer_in_backward`). Counted tensor by tensor at each
  gradient, so that neither the allocator nor the machine's other work shows.

Each way trains in the same process, from the same weights. The exit status is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
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
    parser.add_argument("--markdown", action="store_true", help="print the table as markdown")
    options = parser.parse_args(argv)
    found = compare(QUICK if options.quick else Size())
    print(text_of(rows_of(found), options.markdown))
    missed = misses(found)
    for miss in missed:
        print(f"missed: {miss}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
