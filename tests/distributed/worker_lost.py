"""Runs in which one rank does what loses it to the others; each function is the whole life of a rank."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from mainspring import Trainer, TrainerCallback, TrainingArguments
from mainspring.engines.watch import Watch
from mainspring.processes import side_channel
from tests.faults.runs import Scenario, build
from tests.helpers.ranks import Host

TIMEOUT_S = 8
PLAIN = {
    "ddp_timeout": TIMEOUT_S,
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": False,
    "save_total_limit": None,
}
BOTH = Scenario("two ranks", PLAIN, callbacks=())


class At(TrainerCallback):
    """Does something at an event, the `count`-th time that it happens, on one rank."""

    def __init__(self, event: str, count: int, rank: int, work: Callable[[], object]) -> None:
        self.left, self.rank, self.work = count, rank, work
        setattr(self, event, self.happen)

    def happen(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if not self.left and args.process_index == self.rank:
            self.work()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise ZeroDivisionError("a mistake")


def stand_still() -> None:
    """As a process does that hangs; whoever started it kills it in the end."""
    os.kill(os.getpid(), signal.SIGSTOP)


DOES = {"dies": die, "fails": fail, "stands still": stand_still}


class DiesInASave(Trainer):
    """Rank 1 dies before it has written its file."""

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.process_index == 1:
            die()
        super()._save_rng_state(output_dir)


def one_is_lost(folder: Path, event: str, count: int, does: str) -> None:
    """Rank 1 is lost at an event, or in a save."""
    if event == "save":
        trainer = build(BOTH, folder)
        trainer.__class__ = DiesInASave
    else:
        trainer = build(BOTH, folder, At(event, count, 1, DOES[does]))
    assert (trainer.args.world_size, trainer._engine.kind) == (2, "ddp")
    trainer.train()


def is_cut_off(folder: Path, event: str, count: int, host: Host) -> None:
    """The network of the second host is cut, by rank 1 itself."""
    trainer = build(BOTH, folder, At(event, count, 1, host.cut))
    assert (trainer.args.world_size, trainer._engine.kind) == (2, "ddp")
    trainer.train()


def _watched(limit_s: float, grace_s: float) -> Watch:
    """A watch of a group that has been formed, with limits of its own."""
    _ = TrainingArguments("unused", use_cpu=True, ddp_timeout=TIMEOUT_S).device
    watch = Watch(dist.get_rank(), dist.get_world_size(), limit_s)
    watch.grace_s = grace_s
    return watch


def is_slow_itself() -> None:
    """Computes for several times as long as it may wait for others; waits that end in time lie between."""
    watch = _watched(limit_s=0.2, grace_s=0.1)
    watch._peers.account = lambda: "they are not asked"  # type: ignore[method-assign]
    with watch.session("a slow run"):
        for _ in range(3):
            spend(0.5)
            with watch.waiting("what comes at once"):
                pass


def wait_ends_late() -> None:
    """A wait takes too long, and ends when it is found out why."""
    watch, asked, done = _watched(limit_s=0.2, grace_s=0.1), threading.Event(), threading.Event()

    def account() -> str:
        asked.set()
        assert done.wait(60)
        return "they are all here"

    watch._peers.account = account  # type: ignore[method-assign]
    with watch.session("a run"):
        with watch.waiting("the others"):
            assert asked.wait(60)
        done.set()
        spend(0.5)


def forms_side_channels() -> None:
    """Groups beside the gradients' fail after `ddp_timeout`, too."""
    _ = TrainingArguments("unused", use_cpu=True, ddp_timeout=TIMEOUT_S).device
    for group in (side_channel(), side_channel([0, 1])):
        backend: Any = group._get_backend(torch.device("cpu"))
        assert backend.options._timeout.total_seconds() == TIMEOUT_S


def waits_for_ever() -> None:
    """As in a request to a store that got lost."""
    watch = _watched(limit_s=0.2, grace_s=0.1)
    with watch.session("a run"), watch.during("the night"), watch.waiting("the day"):
        threading.Event().wait()


def spend(seconds: float) -> None:
    """Compute."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def only_the_first_comes() -> None:
    """Rank 1 ends before it has joined."""
    if os.environ["RANK"] == "0":
        _ = TrainingArguments("unused", use_cpu=True, ddp_timeout=TIMEOUT_S).device


def first_process_dies() -> None:
    """While the others wait for it."""
    args = TrainingArguments("unused", use_cpu=True, ddp_timeout=TIMEOUT_S)
    with args.main_process_first(desc="preparing data"):
        if args.process_index == 0:
            die()
