"""What environment variables decide beside the options. Read here for `explain`; acted on in `machine` and `runtime`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mainspring.arguments import launchers
from mainspring.arguments.fsdp_config import said_by_options, taken_over
from mainspring.arguments.fsdp_launcher import ASKS as ASKS_FOR_FSDP
from mainspring.arguments.parallel_sizes import ASKS as ASKS_FOR_SIZES, parallel_sizes
from mainspring.arguments.typed import truth
from mainspring.errors import OptionError

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
    yield from _sharding(args)
    yield from _sizes(args)
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
    translated = launchers.torch_words(os.environ)
    for name, variable in (
        ("world_size", "WORLD_SIZE"),
        ("process_index", "RANK"),
        ("local_process_index", "LOCAL_RANK"),
    ):
        if said := translated.get(variable) or os.environ.get(variable):
            number = int(said) if said.isdecimal() else said
            loses = variable == "LOCAL_RANK" and args.local_rank not in (-1, number)
            note = f"wins over local_rank={args.local_rank}" if loses else ""
            yield Decided(name, number, "SLURM or MPI" if variable in translated else variable, note)


def _sharding(args: TrainingArguments) -> Iterator[Decided]:
    try:
        asked, settings = said_by_options(args.fsdp, args.fsdp_config)
    except OptionError:
        return  # and that is said of the option
    taken, problems = taken_over(asked, settings)
    if taken is not None and asked is None:
        yield Decided("fsdp", True, ASKS_FOR_FSDP)
    for name, said in (taken or {}).items():
        yield Decided(f"fsdp_config[{name!r}]", said.value, said.variable)
    for problem in problems:
        yield Decided(problem.option, problem.value, ASKS_FOR_FSDP, f"cannot be: {problem.why}; {problem.fix}")


def _sizes(args: TrainingArguments) -> Iterator[Decided]:
    try:
        sizes = parallel_sizes(args)
    except OptionError as error:
        for problem in error.problems:
            note = f"cannot be: {problem.why}; {problem.fix}"
            yield Decided(problem.option, problem.value, ASKS_FOR_SIZES, note)
        return
    if sizes is not None and args.parallelism_config is None:
        yield Decided("parallelism_config", sizes.to_dict(), ASKS_FOR_SIZES)
