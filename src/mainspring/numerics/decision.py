"""Whether an update is made, by its loss and gradient norm. Every process decides alike, for each sees the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mainspring.arguments.numerics import NumericsOptions
from mainspring.numerics.spikes import RunningLoss

Action = Literal["make", "skip", "rollback", "raise"]
"""What becomes of an update."""


class Verdict(NamedTuple):
    """What all processes together say of an update.

    Attributes:
        loss: Its loss, the mean over the processes.
        is_finite: Whether every loss and the gradient norm are.
    """

    loss: float
    is_finite: bool

    @classmethod
    def of(
        cls, losses: Sequence[Tensor], norm: Any, scales: bool, sum_over_ranks: Callable[[Tensor], Tensor], ranks: int
    ) -> Verdict:
        """Put together what this process has and hear what the others have: one small sum, and one value read.

        Args:
            losses: Those of the update's micro-batches, 0-d, as they add up to its loss.
            norm: Its gradient norm, 0-d or a number; None where nobody measured it.
            scales: Whether losses are scaled, for fp16: then a norm that is not finite is an overflow, which the scaler
                sees to.
            sum_over_ranks: Sums a tensor over the processes that read different data.
            ranks: How many these are.
        """
        known = losses[0] if losses else norm
        device = known.device if isinstance(known, Tensor) else "cpu"
        loss = torch.stack(list(losses)).sum(dtype=torch.float32) if losses else torch.zeros((), device=device)
        bad = ~loss.isfinite()
        if norm is not None and not scales:
            bad = bad | ~torch.as_tensor(norm, dtype=torch.float32, device=device).reshape(()).isfinite()
        total, count = sum_over_ranks(torch.stack([loss, bad.float()])).tolist()
        return cls(total / ranks, not count)


class Decision(NamedTuple):
    """What becomes of an update, and why.

    Attributes:
        action: What.
        verdict: What is known of it.
        cause: "nonfinite" or "spike"; "" where it is made.
        limit: What was exceeded where an update that might have been left out ends the run: an option and its value.
    """

    action: Action
    verdict: Verdict
    cause: str = ""
    limit: tuple[str, int] | None = None


@dataclass
class _Count:
    """What is counted from update to update.

    Attributes:
        in_row: Updates left out, one after the other, until now.
        rollbacks: Rollbacks since the run last came past `furthest`.
        furthest: The last update at which one came.
        lost: Updates of the plan that were left out or gone back from.
    """

    in_row: int = 0
    rollbacks: int = 0
    furthest: int = 0
    lost: int = 0


class Decider:
    """Decides on each update of a run.

    Args:
        options: What is asked for.

    Attributes:
        running: Mean and deviation of the losses of the updates that were made.
    """

    def __init__(self, options: NumericsOptions) -> None:
        self._options = options
        self._count = _Count()
        self.running = RunningLoss()

    @property
    def lost(self) -> int:
        """Updates of the plan that were left out or gone back from."""
        return self._count.lost

    def decide(self, verdict: Verdict, step: int) -> Decision:
        """What becomes of the update after update `step`."""
        cause = self._cause(verdict)
        wanted = self._wanted(cause)
        if wanted == "skip" and self._count.in_row >= self._options.max_skipped:
            return Decision("raise", verdict, cause, ("max_skipped_updates", self._options.max_skipped))
        if wanted == "rollback" and self._rollbacks_at(step) >= self._options.max_rollbacks:
            return Decision("raise", verdict, cause, ("max_rollbacks", self._options.max_rollbacks))
        if wanted == "make":
            self._count.in_row = 0
            self.running.add(verdict.loss)
        return Decision(wanted, verdict, "" if wanted == "make" else cause)

    def _cause(self, verdict: Verdict) -> str:
        if not verdict.is_finite:
            return "nonfinite"
        looks = self._options.on_spike != "off"
        return "spike" if looks and self.running.is_spike(verdict.loss, self._options.threshold) else ""

    def _wanted(self, cause: str) -> Action:
        """What the options ask for; a loss that is not finite is a spike too, where nothing else is said of it."""
        by_option: Mapping[str, Action] = {"skip": "skip", "rollback": "rollback", "raise": "raise"}
        if cause == "nonfinite" and self._options.on_nonfinite != "log":
            return by_option[self._options.on_nonfinite]
        return by_option.get(self._options.on_spike, "make") if cause else "make"

    def _rollbacks_at(self, step: int) -> int:
        return self._count.rollbacks if step <= self._count.furthest else 0

    def left_out(self) -> None:
        """An update was left out."""
        self._count.in_row += 1
        self._count.lost += 1

    def went_back(self, step: int, to: int, running: Mapping[str, Any]) -> None:
        """The update after `step` was left out, and training went back to update `to`.

        Args:
            step: Updates that were made.
            to: Updates that count.
            running: What the running loss was there.
        """
        self._count.rollbacks = self._rollbacks_at(step) + 1
        self._count.furthest = step
        self._count.lost += step - to + 1
        self.running = RunningLoss(**running)

    def planned_anew(self) -> None:
        """The plan counts the updates that are left: none of them is lost yet."""
        self._count.lost = 0

    def state(self) -> dict[str, Any]:
        """All of it as plain values, for a checkpoint."""
        return {**vars(self._count), "running": self.running.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        count = {name: value for name, value in state.items() if name != "running"}
        self._count, self.running = _Count(**count), RunningLoss(**state["running"])


def printed_number(number: float) -> float | str:
    """A number as JSON has it; NaN and the infinities as text."""
    return number if math.isfinite(number) else str(number)
