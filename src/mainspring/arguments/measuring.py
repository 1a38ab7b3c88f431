"""What is measured of a run, beyond the reference's options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mainspring.arguments.option import option, positive

_RANGE = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")


def updates_of(window: str) -> tuple[int, int] | None:
    """The two numbers of a range such as 10:20; None for anything else."""
    found = _RANGE.fullmatch(window)
    return None if found is None else (int(found[1]), int(found[2]))


def _is_window(window: str) -> str | None:
    updates = updates_of(window)
    if updates is None:
        return "is not start:end, such as 10:20 for the ten updates that begin when ten are done"
    return (
        None
        if updates[0] < updates[1]
        else "has no update in it: the end is not one of them, and comes after the start"
    )


@dataclass(kw_only=True)
class MeasuringArguments:
    """Time, and what the devices could do."""

    profile_steps: str | None = option(
        None,
        "Updates under torch's profiler, as start:end without the end: traces and tables go to output_dir/profile.",
        check=_is_window,
    )
    peak_flops: float | None = option(
        None,
        "Operations per second that a device can do, for mfu in the logs; default: what is known of the GPU.",
        check=positive,
    )


@dataclass(frozen=True)
class MeasuringOptions:
    """What is measured. The defaults are those of a foreign arguments object.

    Attributes:
        profile: Updates before the first profiled one, and before the first that is not any more; None: none is.
        peak_flops: Floating-point operations per second of a device; None: what is known of it.
    """

    profile: tuple[int, int] | None = None
    peak_flops: float | None = None


def measuring_options(args: Any) -> MeasuringOptions:
    """The options of `args` that say what is measured."""
    if not isinstance(args, MeasuringArguments):
        return MeasuringOptions()
    return MeasuringOptions(
        profile=None if args.profile_steps is None else updates_of(args.profile_steps), peak_flops=args.peak_flops
    )
