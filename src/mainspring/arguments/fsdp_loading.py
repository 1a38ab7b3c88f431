"""`cpu_ram_efficient_loading`: what transformers' `from_pretrained` reads, before any trainer is there to tell it.

It looks at two environment variables and at whether a group of processes is there; then every process but the first of
its machine leaves the weights empty. Arguments that ask for it say so when they are constructed: the one thing outside
of themselves that constructing them touches.
"""

from __future__ import annotations

import os

VARIABLES = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")

_set: dict[str, str | None] = {}
"""What was there before: the variables that are set from here, and their values then."""


def before(variable: str) -> str | None:
    """The value of a variable as the launcher left it."""
    ours = variable in _set and os.environ.get(variable) == "true"
    return _set[variable] if ours else os.environ.get(variable)


def announce() -> None:
    """Let `from_pretrained` know. Once more changes nothing."""
    for variable in VARIABLES:
        _set[variable] = before(variable)
        os.environ[variable] = "true"


def withdraw() -> None:
    """Put back what `announce` has changed, but for what somebody else has set since."""
    for variable in [*_set]:
        value = before(variable)
        del _set[variable]
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value
