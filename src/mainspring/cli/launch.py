"""``mainspring launch``: start a script as several processes, on this machine or on several."""

from __future__ import annotations

import argparse

from mainspring.cli.answer import Answer

_DESCRIPTION = """\
Start a script as several processes that train together. Each finds its place in its environment, as under torchrun: the
script needs no change. What Accelerate's configuration files say is taken over; options given here win.
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``launch`` to the commands of ``mainspring``."""
    parser = commands.add_parser(
        "launch", help="start a script as several processes", description=_DESCRIPTION, allow_abbrev=False
    )
    _add_processes(parser)
    _add_machines(parser)
    parser.add_argument("-m", "--module", action="store_true", help="the script is a module's name, as for python -m")
    parser.add_argument("script", metavar="SCRIPT", help="what to run")
    parser.add_argument("words", metavar="...", nargs=argparse.REMAINDER, help="its own arguments")
    parser.set_defaults(answer=_launch)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("processes")
    group.add_argument(
        *_spelled("nproc", "nproc-per-node"),
        dest="nproc",
        metavar="N",
        type=_count,
        help="processes on this machine; by default one for each GPU, or one",
    )
    group.add_argument("--cpu", action="store_true", help="stay on the CPU")
    group.add_argument(*_spelled("mixed-precision"), choices=("no", "bf16", "fp16"), help="unless the script says")
    group.add_argument(
        *_spelled("config", "config-file"), dest="config", metavar="FILE", help="an Accelerate configuration file"
    )
    group.add_argument("--no-config", action="store_true", help="leave the file of `accelerate config` unread")
    group.add_argument(
        *_spelled("max-restarts"), metavar="N", type=_number, default=0, help="start all anew after a failure, so often"
    )
    group.add_argument(
        *_spelled("shutdown-timeout"),
        metavar="SECONDS",
        type=_count,
        help="how long processes may take to save and end after a signal; torch's default is 30",
    )


def _add_machines(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several machines", "The command is started on each of them.")
    group.add_argument("--nnodes", metavar="N", help="how many; MIN:MAX where some may come and go")
    group.add_argument(*_spelled("node-rank"), metavar="N", type=_number, help="which of them this is, from 0")
    group.add_argument(*_spelled("master-addr"), metavar="HOST", help="the first machine")
    group.add_argument(*_spelled("master-port"), metavar="PORT", type=_count, help="a free port there")
    group.add_argument(*_spelled("rdzv-backend"), metavar="NAME", help="how they find each other: static or c10d")
    group.add_argument(*_spelled("rdzv-endpoint"), metavar="HOST:PORT", help="where they do")
    group.add_argument(*_spelled("rdzv-id"), metavar="NAME", help="name of the job there")
    group.add_argument(*_spelled("rdzv-conf"), metavar="KEY=VALUE,...", help="further settings of torch's rendezvous")
    group.add_argument(*_spelled("local-addr"), metavar="HOST", help="this machine, as the others reach it")


def _spelled(*names: str) -> list[str]:
    """Options are also written with underscores, as torchrun and Accelerate do."""
    return list(dict.fromkeys(f"--{form}" for name in names for form in (name, name.replace("-", "_"))))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def _launch(options: argparse.Namespace) -> Answer:
    # torch is imported here, not for the help.
    from mainspring.launch.elastic import run
    from mainspring.launch.job import Wanted, job_of

    said = {name: value for name, value in vars(options).items() if name not in ("answer", "module", "no_config")}
    wanted = Wanted(**said, is_module=options.module, reads_default_config=not options.no_config)
    return Answer("", run(job_of(wanted)))
