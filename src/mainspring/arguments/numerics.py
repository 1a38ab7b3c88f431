"""What is done about numbers that go wrong: losses and gradients that are not finite, and losses that jump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mainspring.arguments.option import option, positive


@dataclass(kw_only=True)
class NumericsArguments:
    """NaNs, infinities and jumps of the loss."""

    on_nonfinite: str = option(
        "log",
        "An update with a NaN or infinite loss or gradient norm: log, count it; skip, leave it out; raise, end the run.",
        choices=("log", "skip", "raise"),
    )
    on_loss_spike: str = option(
        "off",
        "An update whose loss jumps: off, it is made; skip, it is left out; rollback, training goes back before it.",
        choices=("off", "skip", "rollback"),
    )
    loss_spike_threshold: float = option(
        6.0,
        "Running standard deviations above the running mean from which on a loss is a spike.",
        check=positive,
    )
    loss_spike_rollback_updates: int = option(
        100,
        "Updates between two snapshots for on_loss_spike='rollback', which goes back by at least as many.",
        check=positive,
    )
    max_skipped_updates: int = option(
        10, "Updates in a row that on_nonfinite and on_loss_spike may leave out before the run ends.", check=positive
    )
    max_rollbacks: int = option(
        3,
        "Rollbacks without coming past the update of the one before; after more the run ends.",
        check=positive,
    )


@dataclass(frozen=True)
class NumericsOptions:
    """What is done about numbers that go wrong. The defaults are those of a foreign arguments object.

    Attributes:
        on_nonfinite: "log", "skip" or "raise".
        on_spike: "off", "skip" or "rollback".
        threshold: Running deviations above the running mean from which on a loss is a spike.
        snapshot_every: Updates between two snapshots that a rollback can go to.
        max_skipped: Updates in a row that may be left out.
        max_rollbacks: Rollbacks without getting any further.
    """

    on_nonfinite: str = "log"
    on_spike: str = "off"
    threshold: float = 6.0
    snapshot_every: int = 100
    max_skipped: int = 10
    max_rollbacks: int = 3

    @property
    def decides(self) -> bool:
        """Whether it is decided on each update whether it is made."""
        return self.on_nonfinite != "log" or self.on_spike != "off"

    @property
    def chosen(self) -> tuple[str, str]:
        """The option that asks for that, and its value."""
        if self.on_nonfinite != "log":
            return "on_nonfinite", self.on_nonfinite
        return "on_loss_spike", self.on_spike


def numerics_options(args: Any) -> NumericsOptions:
    """The options of `args` about numbers that go wrong."""
    if not isinstance(args, NumericsArguments):
        return NumericsOptions()
    return NumericsOptions(
        on_nonfinite=args.on_nonfinite,
        on_spike=args.on_loss_spike,
        threshold=args.loss_spike_threshold,
        snapshot_every=args.loss_spike_rollback_updates,
        max_skipped=args.max_skipped_updates,
        max_rollbacks=args.max_rollbacks,
    )
