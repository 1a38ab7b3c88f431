"""torch's elastic launcher, with two things added: which signals it passes on, and how the job ended.

It starts the processes, tells each its place in the world, and starts all anew when one fails and restarts are left.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from mainspring.errors import EXIT_RESUMABLE

if TYPE_CHECKING:
    from argparse import Namespace

    from torch.distributed.elastic.agent.server.api import RunResult
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    from mainspring.launch.job import Job

_ENDED_BY_TORCH = -signal.SIGTERM
"""How torch ends the other processes once one has failed."""


def run(job: Job) -> int:
    """Start a job, wait for it, and return its exit code.

    It is 0 where all processes ended well; 75 (`EXIT_RESUMABLE`) where they were asked to stop, and saved; else that of the
    first that failed, or 128 and the number of the signal that ended it. This process becomes the job's: what is set here
    for the others stays set.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for line in job.lines:
        _say(line)
    os.environ.update(job.environment)
    statuses: list[int] = []
    _pass_on_sigusr1()
    _heed_endings(statuses, job.meeting.nnodes)
    try:
        torchrun.run(torch_options(job))
    except ChildFailedError as error:
        return _failed(error)
    except SignalException as stopped:
        return _stopped(stopped.sigval, statuses)
    return 0


def torch_options(job: Job) -> Namespace:
    """The job as torchrun would read it from a command line."""
    from torch.distributed import run as torchrun

    options: Namespace = torchrun.parse_args(_words(job))
    # Not parsed: torchrun takes words of the script's that resemble its own options for these.
    options.training_script_args = list(job.wanted.words)
    return options


def _words(job: Job) -> list[str]:
    wanted, meeting = job.wanted, job.meeting
    options = {
        "nnodes": ":".join(str(count) for count in meeting.nnodes),
        "nproc-per-node": job.nproc,
        "max-restarts": wanted.max_restarts,
        "node-rank": meeting.rank,
        "rdzv-backend": meeting.backend,
        "rdzv-endpoint": meeting.endpoint,
        "rdzv-id": wanted.rdzv_id,
        "rdzv-conf": wanted.rdzv_conf,
        "local-addr": wanted.local_addr,
        "shutdown-timeout": wanted.shutdown_timeout,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    where = ["--standalone"] if meeting.endpoint is None else []
    return [*where, *given, *(["--module"] if wanted.is_module else []), wanted.script]


def _pass_on_sigusr1() -> None:
    """Treat SIGUSR1, which SLURM sends ahead of a job's end, as torch treats SIGTERM.

    Left alone it would end the launcher and leave the processes running without it. torch has an option for that, which is
    younger than the oldest torch that is supported.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    def receive(number: int, _: FrameType | None) -> NoReturn:
        raise SignalException(f"process {os.getpid()} got signal {number}", signal.Signals(number))

    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, receive)


def _heed_endings(statuses: list[int], nnodes: tuple[int, int]) -> None:
    """Let torch's agent heed how processes ended.

    It would forget how those did that it passed a signal on to; and start those anew that were asked to stop, and saved.
    In a job of machines that come and go it still does: the others may go on when one is asked to stop.
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    class HeedingAgent(LocalElasticAgent):
        def _monitor_workers(self, *args: Any, **kwargs: Any) -> RunResult:
            result: RunResult = super()._monitor_workers(*args, **kwargs)
            if nnodes[0] == nnodes[1] and _were_asked_to_stop(result.failures):
                self._remaining_restarts = 0
            return result

        def _shutdown(self, *args: Any, **kwargs: Any) -> None:
            super()._shutdown(*args, **kwargs)
            handlers = getattr(self._pcontext, "subprocess_handlers", {})
            codes = [handler.proc.returncode for handler in handlers.values()]
            statuses[:] = [code for code in codes if code is not None]

    api: Any = import_module("torch.distributed.launcher.api")
    api.LocalElasticAgent = HeedingAgent


def _failed(error: ChildFailedError) -> int:
    if _were_asked_to_stop(error.failures):
        return _resumable()
    own = {rank: one for rank, one in error.failures.items() if one.exitcode not in (EXIT_RESUMABLE, _ENDED_BY_TORCH)}
    rank, first = min((own or error.failures).items(), key=lambda item: item[1].timestamp)
    number = len(own)
    others = f", the first of {number} to fail" if number > 1 else ""
    ending = f"was ended by signal {-first.exitcode}" if first.exitcode < 0 else f"ended with status {first.exitcode}"
    _say(f"process {rank} {ending}{others}; what it printed stands above")
    return _status(first.exitcode)


def _were_asked_to_stop(failures: Mapping[int, ProcessFailure]) -> bool:
    """Whether processes were asked to stop, and saved, and nothing else has gone wrong."""
    codes = {failure.exitcode for failure in failures.values()}
    return EXIT_RESUMABLE in codes and codes <= {EXIT_RESUMABLE, _ENDED_BY_TORCH}


def _stopped(asked: signal.Signals, statuses: list[int]) -> int:
    """The exit code of a job that a signal stopped: what its processes made of it."""
    if asked is signal.SIGINT and any(statuses):
        return _status(-asked)  # Ctrl-C ends a process in its own way, after saving too
    bad = [status for status in statuses if status not in (0, EXIT_RESUMABLE)]
    if bad or not statuses:
        _say(f"stopped by {asked.name}; processes ended with {', '.join(map(str, statuses)) or 'no status'}")
        return _status(bad[0] if bad else -asked)
    if EXIT_RESUMABLE in statuses:
        return _resumable()
    return 0


def _resumable() -> int:
    _say("stopped with a checkpoint: the same command, with resume_from_checkpoint, goes on from there")
    return EXIT_RESUMABLE


def _status(code: int) -> int:
    """An exit code as shells write it: processes that a signal ended have a negative one."""
    return 128 - code if code < 0 else code


def _say(line: str) -> None:
    sys.stderr.write(f"mainspring: {line}\n")
    sys.stderr.flush()
