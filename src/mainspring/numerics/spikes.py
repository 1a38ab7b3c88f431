"""The running mean and variance of the updates' losses, and losses that lie far above them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

WARM_UP = 50
"""Updates that are looked at before any of them counts as a spike."""

_NEW = 1 / 50
"""What a new loss counts for, once as many were seen: the memory is about as long as the warm-up."""

_LEAST = 0.01
"""A deviation counts as at least this share of the mean: where the loss stands still, every rise would be a spike."""


@dataclass
class RunningLoss:
    """Exponentially weighted mean and variance, as in T. Finch, "Incremental calculation of weighted mean and variance", 2009.

    The first losses count alike, so that the very first one is not remembered for long.

    Args:
        seen: Losses so far.
        mean: Their mean.
        variance: Their variance.
    """

    seen: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, loss: float) -> None:
        """Take one update's loss in; one that is not finite is none."""
        if not math.isfinite(loss):
            return
        self.seen += 1
        weight = max(1 / self.seen, _NEW)
        step = loss - self.mean
        self.mean += weight * step
        self.variance = (1 - weight) * (self.variance + weight * step * step)

    @property
    def deviation(self) -> float:
        """The standard deviation, or what counts as such where the loss hardly moves."""
        return max(math.sqrt(self.variance), _LEAST * abs(self.mean))

    def is_spike(self, loss: float, threshold: float) -> bool:
        """Whether a loss lies more than `threshold` deviations above the mean."""
        return self.seen >= WARM_UP and loss > self.mean + threshold * self.deviation

    def state(self) -> dict[str, float]:
        """The three numbers, as plain values."""
        return asdict(self)
