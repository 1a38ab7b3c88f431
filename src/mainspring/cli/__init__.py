"""The ``mainspring`` command.

It answers questions about names without importing torch, so it answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from mainspring import __version__
from mainspring.names import OPTIMIZER_NAMES, SCHEDULER_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

NAMES = {"optim": OPTIMIZER_NAMES, "lr_scheduler_type": SCHEDULER_NAMES}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words after the command's name; those of the process when None.

    Returns:
        The exit code: 0, or 1 when the reader of the output went away.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        print(parser.format_help() if options.option is None else "\n".join(_lines(options.option)))
        sys.stdout.flush()
    except BrokenPipeError:  # `mainspring optimizers | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own flush fails again
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mainspring", description="Train PyTorch models.")
    parser.add_argument("--version", action="version", version=f"mainspring {__version__}")
    parser.set_defaults(option=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command, option in (("optimizers", "optim"), ("schedulers", "lr_scheduler_type")):
        text = f"list the names that {option} takes"
        commands.add_parser(command, help=text, description=f"{text[0].upper()}{text[1:]}.").set_defaults(option=option)
    return parser


def _lines(option: str) -> list[str]:
    """Return the names that an option takes, one per line; those whose machinery is not here yet say so."""
    from mainspring.arguments.not_yet import AVAILABLE  # a tenth of a second that --version does not need

    available = AVAILABLE.get(option, NAMES[option])
    width = max(map(len, NAMES[option]))
    return [name if name in available else f"{name:<{width}}  not available yet" for name in NAMES[option]]
