"""Decides on each update of a run, and takes back those that are not made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from mainspring.arguments.numerics import NumericsOptions
from mainspring.errors import OptionError, Problem
from mainspring.numerics.buffers import KeptBuffers
from mainspring.numerics.decision import Decider, Decision, Verdict
from mainspring.numerics.snapshot import Snapshot, Snapshots, Subject


class Together(Protocol):
    """What is asked of an engine."""

    data_world_size: int

    @property
    def scales_loss(self) -> bool:
        """Whether losses are scaled, for fp16."""

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""


class Counters(NamedTuple):
    """What a run counts beside what it trains, and goes back with it.

    Attributes:
        read: Gives all of it as plain values and tensors.
        put_back: Takes them.
    """

    read: Callable[[], dict[str, Any]]
    put_back: Callable[[Mapping[str, Any]], None]


class Guard:
    """Decides on each update, by numbers that all processes share.

    Args:
        options: What is asked for.
        engine: Sums over the processes.
        subject: What is trained.
        window: The sum of the losses since the last log, which is changed in place.
        counters: What is counted.
    """

    def __init__(
        self, options: NumericsOptions, engine: Together, subject: Subject, window: Tensor, counters: Counters
    ) -> None:
        self.decider = Decider(options)
        self.snapshots = Snapshots(options.snapshot_every) if options.on_spike == "rollback" else None
        self._engine = engine
        self._subject = subject
        self._buffers = KeptBuffers(subject.model)
        self._window = window
        self._window_before = window.clone()
        self._counters = counters

    def begin(self, step: int) -> None:
        """The update after update `step` begins: remember what it changes before it is decided on."""
        self._buffers.keep()
        self._window_before.copy_(self._window)
        if self.snapshots is not None and self.snapshots.is_due(step):
            self.snapshots.take(Snapshot(step, self._subject.copied(), self._counters.read()))

    def decide(self, losses: Sequence[Tensor], norm: Any, step: int) -> Decision:
        """What becomes of the update whose gradients are there."""
        engine = self._engine
        verdict = Verdict.of(losses, norm, engine.scales_loss, engine.sum, engine.data_world_size)
        return self.decider.decide(verdict, step)

    def take_back(self) -> None:
        """Make the buffers and the loss window what they were when the update began."""
        self._buffers.put_back()
        self._window.copy_(self._window_before)

    def go_back(self, step: int) -> int:
        """Go back from update `step` to a snapshot; returns its update."""
        assert self.snapshots is not None
        place = self.snapshots.before(step)
        self._subject.put_back(place.trained)
        self._counters.put_back(place.counted)
        self.decider.went_back(step, place.step, place.counted["running"])
        return place.step


_REMEMBERED = (
    "what ddp_comm_hook='powersgd' has lost to rounding is carried from update to update, and cannot be taken back"
)


def refuse_run(
    options: NumericsOptions, *, in_backward: bool, why_no_snapshot: str | None, remembers_gradients: bool
) -> None:
    """Refuse, before any work, runs in which updates cannot be decided on.

    Args:
        options: What is asked for.
        in_backward: Whether the optimizer acts inside the backward pass.
        why_no_snapshot: Why the engine's weights cannot be copied and put back; None: they can.
        remembers_gradients: Whether what is left of gradients is kept from update to update.

    Raises:
        OptionError: With the reason.
    """
    if not options.decides:
        return
    reason = None
    name, value = options.chosen
    if in_backward:
        reason = "the optimizer acts inside the backward pass: when the gradients are known, the weights are changed"
    elif "skip" in (options.on_nonfinite, options.on_spike) and remembers_gradients:
        reason = _REMEMBERED
    elif options.on_spike == "rollback":
        name, value = "on_loss_spike", "rollback"
        reason = why_no_snapshot or (_REMEMBERED if remembers_gradients else None)
    if reason is not None:
        raise OptionError([Problem(name, value, reason, "leave it out, or change that")])
