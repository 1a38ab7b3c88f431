"""The exceptions of the package: few, and each also an exception that Python users already catch.

Messages are one line per problem and name the option or argument, its value, why that cannot be, and what to do
instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "EXIT_LOST",
    "EXIT_RESUMABLE",
    "CheckpointError",
    "MainspringError",
    "MissingPackageError",
    "NonFiniteError",
    "NotAvailableError",
    "OptionError",
    "Preempted",
    "Problem",
    "ProcessesError",
    "between_processes",
    "did_you_mean",
    "printed",
]


class MainspringError(Exception):
    """Base of every exception that this package defines."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one option.

    Attributes:
        option: Name of the option or argument.
        value: The value it was given.
        why: Why that value cannot be used, without a full stop.
        fix: What the user can do, in the imperative.
    """

    option: str
    value: object
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.option}={printed(self.value)}: {self.why}; {self.fix}"


class OptionError(MainspringError, ValueError):
    """One or several options cannot be what they were set to.

    Attributes:
        problems: Every problem that was found, in the order of the message's lines.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[OptionError], tuple[tuple[Problem, ...]]]:
        # The default would rebuild the error from its message; data workers and launchers pickle exceptions.
        return type(self), (self.problems,)


class NotAvailableError(OptionError):
    """Options that are known, but whose machinery this version does not have yet."""


class MissingPackageError(MainspringError, ImportError):
    """Something that was asked for needs a package that is not installed."""


class CheckpointError(MainspringError, ValueError):
    """A checkpoint is absent, incomplete or not what was expected."""


class NonFiniteError(MainspringError, RuntimeError):
    """Numbers have gone wrong, and the options say that this ends the run. The update in question is not made.

    Attributes:
        step: The update that it would have been, from 1.
    """

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class ProcessesError(MainspringError, RuntimeError):
    """The processes of a run have lost each other: one ended, the network is cut, or `ddp_timeout` has passed.

    The run can be continued from its newest checkpoint.

    Attributes:
        phase: What this process was doing, such as "training, update 17".
    """

    def __init__(self, message: str, phase: str = "") -> None:
        super().__init__(message)
        self.phase = phase


def between_processes(error: BaseException) -> bool:
    """Whether torch raised this because something between processes failed: gloo, NCCL, or the store where they meet.

    gloo has no exception of its own, only a `RuntimeError` whose text names its source file, or is that of a pair of
    processes which it has closed after a timeout.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, MainspringError):
        return False
    kinds = type(error).__mro__
    torchs = any(kind.__module__.startswith("torch") and kind.__name__ == "DistError" for kind in kinds)
    return torchs or "/gloo/" in str(error) or "caused pair closure" in str(error)


EXIT_LOST = 69
"""Exit status of a process that waited for others longer than torch itself allows: EX_UNAVAILABLE of sysexits.h."""

EXIT_RESUMABLE = 75
"""Exit status of a run that was stopped and can be continued: EX_TEMPFAIL of sysexits.h."""


class Preempted(SystemExit):
    """A run was asked to stop, saved a checkpoint, and can be continued. Uncaught, it ends the process with status 75.

    Attributes:
        message: What asked, where the run stood, and which checkpoint continues it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_RESUMABLE)
        self.message = message

    def __str__(self) -> str:
        return self.message


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the choice closest to ``name``, or ``""`` when none is close.

    Args:
        name: What the user wrote.
        choices: What could have been meant.

    Returns:
        A tail for an error message.
    """
    from difflib import get_close_matches  # only a mistake needs it: not worth its import time at start

    spellings = {choice.lower(): choice for choice in choices}
    close = get_close_matches(name.lower(), spellings, n=1)
    return f"; did you mean {spellings[close[0]]!r}?" if close else ""


def printed(value: object, limit: int = 200) -> str:
    """Return the value as the user wrote it (the text of an enumeration member), cut to ``limit`` characters."""
    try:
        text = repr(getattr(value, "value", value) if isinstance(value, str) else value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets inside one another
        text = f"<{type(value).__name__} too large to print>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
