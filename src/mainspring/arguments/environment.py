"""What environment variables decide beside the options. Read here for `explain`; acted on in `machine` and `runtime`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mainspring.arguments.typed import truth

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments


class Decided(NamedTuple):
    """One thing that a variable decides.

    Attributes:
        name: The property of the arguments.
        value: What it will be.
        variable: The variable.
        note: Which option it goes with or against.
    """

    name: str
    value: Any
    variable: str
    note: str = ""


def decided_by_environment(args: TrainingArguments) -> Iterator[Decided]:
    """Everything that the environment decides about a run of these arguments. No device is asked."""
    yield from _precision(args)
    yield from _device(args)
    yield from _processes(args)
    if level := os.environ.get("MAINSPRING_VERBOSITY"):
        yield Decided("the library's log level", level, "MAINSPRING_VERBOSITY")


def _precision(args: TrainingArguments) -> Iterator[Decided]:
    variable = "ACCELERATE_MIXED_PRECISION"
    asked = os.environ.get(variable, "no").lower()
    if asked == "no":
        return
    wins = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    note = "neither bf16 nor fp16 is set" if wins is None else f"has no effect, because {wins} is set"
    yield Decided("mixed_precision", args.mixed_precision, f"{variable}={asked}" if wins else variable, note)


def _device(args: TrainingArguments) -> Iterator[Decided]:
    if device := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        yield Decided("device", device, "ACCELERATE_TORCH_DEVICE", "wins over use_cpu=True" if args.use_cpu else "")
    elif truth(os.environ.get("ACCELERATE_USE_CPU", "")) is True and not args.use_cpu:
        yield Decided("device", "cpu", "ACCELERATE_USE_CPU", "wins over use_cpu=False")


def _processes(args: TrainingArguments) -> Iterator[Decided]:
    for name, variable in (
        ("world_size", "WORLD_SIZE"),
        ("process_index", "RANK"),
        ("local_process_index", "LOCAL_RANK"),
    ):
        if said := os.environ.get(variable):
            number = int(said) if said.isdecimal() else said
            loses = variable == "LOCAL_RANK" and args.local_rank not in (-1, number)
            yield Decided(name, number, variable, f"wins over local_rank={args.local_rank}" if loses else "")
