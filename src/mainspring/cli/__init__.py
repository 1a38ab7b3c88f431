"""The ``mainspring`` command.

It answers questions about names and options without importing torch, so it answers at once.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import warnings
from typing import TYPE_CHECKING

from mainspring import __version__
from mainspring.cli.answer import Answer
from mainspring.cli.checkpoints import add_commands
from mainspring.cli.export import add_command as add_export
from mainspring.cli.launch import add_command as add_launch
from mainspring.names import OPTIMIZER_NAMES, OPTIMIZER_NEEDS, SCHEDULER_NAMES, SCHEDULER_NEEDS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

NAMES = {
    "optim": (OPTIMIZER_NAMES, OPTIMIZER_NEEDS),
    "lr_scheduler_type": (SCHEDULER_NAMES, SCHEDULER_NEEDS),
}
"""Option to its names, and to what some of them need."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The words after the command's name; those of the process when None.

    Returns:
        The exit code: 0, 1 when the reader of the output went away or the command says so, or 2 when the question has no
        answer.
    """
    options = _parser().parse_args(argv)
    try:
        answer = options.answer(options)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"mainspring: {error}", file=sys.stderr)
        return 2
    try:
        if answer.text:
            print(answer.text)
        sys.stdout.flush()
    except BrokenPipeError:  # `mainspring optimizers | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's own flush fails again
        return 1
    return int(answer.status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mainspring", description="Train PyTorch models.")
    parser.add_argument("--version", action="version", version=f"mainspring {__version__}")
    parser.set_defaults(answer=lambda _: Answer(parser.format_help()))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command, option in (("optimizers", "optim"), ("schedulers", "lr_scheduler_type")):
        text = f"list the names that {option} takes"
        listing = commands.add_parser(command, help=text, description=f"{text[0].upper()}{text[1:]}.")
        listing.set_defaults(answer=functools.partial(_names, option))
    text = "say what a file of options comes to, and why"
    explain = commands.add_parser("explain", help=text, description=f"{text[0].upper()}{text[1:]}.")
    explain.add_argument("config", metavar="CONFIG", help="options of TrainingArguments, in JSON (.json) or YAML")
    explain.add_argument("--all", action="store_true", help="also show options that have their default values")
    explain.set_defaults(answer=_explanation)
    add_commands(commands)
    add_export(commands)
    add_launch(commands)
    return parser


def _explanation(options: argparse.Namespace) -> Answer:
    """Return the table of `TrainingArguments.explain` for a file, which may also hold what the script itself reads."""
    from mainspring.arguments.config_files import options_of_json, options_of_yaml
    from mainspring.arguments.explain import explanation, no_options
    from mainspring.arguments.parser import HfArgumentParser
    from mainspring.arguments.seq2seq_arguments import Seq2SeqTrainingArguments

    parser = HfArgumentParser(Seq2SeqTrainingArguments)
    is_json = options.config.lower().endswith(".json")
    read = parser.parse_json_file if is_json else parser.parse_yaml_file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table says it all
        (args,) = read(options.config, allow_extra_keys=True)
    names = (options_of_json if is_json else options_of_yaml)(options.config)
    lines = [explanation(args).text(everything=options.all), *no_options(Seq2SeqTrainingArguments, names)]
    return Answer("\n".join(lines).rstrip())


def _names(option: str, _: argparse.Namespace) -> Answer:
    """Return the names that an option takes, one per line, with what each needs."""
    names, needs = NAMES[option]
    width = max(map(len, names))
    return Answer("\n".join(f"{name:<{width}}  needs {needs[name]}" if name in needs else name for name in names))
