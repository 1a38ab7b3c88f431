"""What a command says, and the exit code it ends with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """The answer of a command.

    Attributes:
        text: What is printed, without the last line's end; nothing where it is empty.
        status: The exit code.
    """

    text: str
    status: int = 0
