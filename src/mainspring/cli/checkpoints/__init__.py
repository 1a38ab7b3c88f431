"""``mainspring checkpoints``: which checkpoints there are, whether they are whole, how two differ, and which may go."""

from __future__ import annotations

import argparse

from mainspring.cli.answer import Answer


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``checkpoints`` and its own commands to those of ``mainspring``."""
    parser = commands.add_parser(
        "checkpoints",
        help="list, verify, compare or prune checkpoints",
        description="Look after the checkpoints of a run.",
    )
    parser.set_defaults(answer=lambda _: Answer(parser.format_help().rstrip()))
    own = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_list(own)
    _add_verify(own)
    _add_compare(own)
    _add_prune(own)


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "show a run's checkpoints: step, age, size, metric, whether they are valid"
    parser = _add(commands, "list", text)
    parser.add_argument("path", metavar="PATH", help="a run's output folder, or one checkpoint")
    parser.add_argument(
        "--full", action="store_true", help="read every byte; without it only names and sizes are checked"
    )
    parser.set_defaults(answer=_list)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "read every byte of a run's checkpoints; the exit code is 1 when one is damaged"
    parser = _add(commands, "verify", text)
    parser.add_argument("path", metavar="PATH", help="a run's output folder, or one checkpoint")
    parser.set_defaults(answer=_verify)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = (
        "name the first thing in which two checkpoints differ; the exit code is 0 (equal), 1 (different) or 2 (trouble)"
    )
    parser = _add(commands, "compare", text)
    parser.add_argument("first", metavar="A", help="a checkpoint")
    parser.add_argument("second", metavar="B", help="another")
    parser.set_defaults(answer=_compare)


def _add_prune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = (
        "delete a run's oldest checkpoints; never the best, the newest, nor the only valid one, and none of another run"
    )
    parser = _add(commands, "prune", text)
    parser.add_argument("path", metavar="PATH", help="a run's output folder")
    parser.add_argument("--keep", metavar="N", type=_count, required=True, help="how many to keep, at least")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser.set_defaults(answer=_prune)


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


# Each command is imported when it is called: most need nothing of what the others do.


def _list(options: argparse.Namespace) -> Answer:
    from mainspring.cli.checkpoints.listing import listing

    return listing(options.path, options.full)


def _verify(options: argparse.Namespace) -> Answer:
    from mainspring.cli.checkpoints.verification import verification

    return verification(options.path)


def _compare(options: argparse.Namespace) -> Answer:
    from mainspring.cli.checkpoints.comparison import comparison

    return comparison(options.first, options.second)


def _prune(options: argparse.Namespace) -> Answer:
    from mainspring.cli.checkpoints.pruning import pruning

    return pruning(options.path, options.keep, options.dry_run)
