"""The learning-rate range test: L. Smith, *Cyclical learning rates*, https://arxiv.org/abs/1506.01186.

The rate grows geometrically from update to update. Where it is too small the loss hardly falls, then it falls faster and
faster, and where the rate is too large it diverges. What comes before that is a good rate to train with.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mainspring.errors import MissingPackageError, OptionError, Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPLETE = "the largest rate was tried"
DIVERGED = "the loss diverged"
NOT_FINITE = "the loss was not finite"


@dataclass(frozen=True)
class RangeTest:
    """What is tried.

    Attributes:
        min_lr: The first rate.
        max_lr: The last one.
        num_updates: Updates from the one to the other.
        smoothing: What the running mean of the losses keeps of itself, at least 0 and below 1.
        stop_factor: The test ends where the smoothed loss is so many times the smallest so far.

    Raises:
        OptionError: One of them is out of its range.
    """

    min_lr: float = 1e-7
    max_lr: float = 1.0
    num_updates: int = 100
    smoothing: float = 0.9
    stop_factor: float = 4.0

    def __post_init__(self) -> None:
        rules = (
            ("min_lr", 0 < self.min_lr < math.inf, "the rate grows by a factor", "choose a number above 0"),
            ("max_lr", self.min_lr < self.max_lr < math.inf, "the rate grows", "choose a number above min_lr"),
            ("num_updates", self.num_updates >= 2, "there are a first and a last rate", "choose 2 at least"),
            ("smoothing", 0 <= self.smoothing < 1, "it is a share", "choose a number from 0 to below 1"),
            ("stop_factor", self.stop_factor > 1, "no loss is below the smallest", "choose a number above 1"),
        )
        problems = [Problem(name, getattr(self, name), why, fix) for name, holds, why, fix in rules if not holds]
        if problems:
            raise OptionError(problems)

    @property
    def settles_after(self) -> int:
        """Losses of which the running mean is smooth; nothing is concluded from fewer."""
        return math.ceil(1 / (1 - self.smoothing))

    def rate(self, update: int) -> float:
        """The rate of an update, counted from 0."""
        return float(self.min_lr * (self.max_lr / self.min_lr) ** (update / (self.num_updates - 1)))


@dataclass(frozen=True)
class LearningRates:
    """What became of the loss at which rate.

    Attributes:
        test: What was tried.
        rates: Of each update.
        losses: Smoothed: the bias-corrected running mean.
        raw_losses: As they were.
        ended: Why the test ended.
    """

    test: RangeTest
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    raw_losses: tuple[float, ...]
    ended: str

    @property
    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss falls most steeply, over the logarithm of the rate; None: nowhere.

        The first losses, of which a running mean is not smooth yet, are left out.
        """
        first = min(self.test.settles_after, len(self.rates))
        losses = np.asarray(self.losses[first:])
        if len(losses) < 3:
            return None
        slopes = np.gradient(losses, np.log(np.asarray(self.rates[first:])))
        steepest = int(slopes.argmin())
        return float(self.rates[first + steepest]) if slopes[steepest] < 0 else None

    @property
    def minimum_over_ten(self) -> float | None:
        """A tenth of the rate with the smallest smoothed loss; None where no loss was finite."""
        return self.rates[int(np.argmin(self.losses))] / 10 if self.losses else None

    def __str__(self) -> str:
        last = f"{self.rates[-1]:.1e}" if self.rates else "none"
        return (
            f"{len(self.rates)} of {self.test.num_updates} updates, rates from {self.test.min_lr:.1e} to {last}: "
            f"{self.ended}\n"
            f"  the loss falls most steeply at {_shown(self.suggestion)} (suggestion)\n"
            f"  a tenth of the rate with the smallest loss is {_shown(self.minimum_over_ten)}"
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the losses over the rates.

        Args:
            path: Where to save the picture; its name says the format, as `rates.png`.

        Returns:
            The figure, of matplotlib.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise MissingPackageError("plot() needs matplotlib: pip install matplotlib", name=error.name) from error
        figure = Figure(layout="constrained")
        axes: Any = figure.subplots()
        axes.plot(self.rates, self.raw_losses, alpha=0.3, label="loss")
        axes.plot(self.rates, self.losses, label="smoothed")
        for name, rate in (("suggestion", self.suggestion), ("minimum / 10", self.minimum_over_ten)):
            if rate is not None:
                axes.axvline(rate, linestyle="--", color="gray", label=f"{name}: {rate:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure


class Record:
    """The losses of a test under way.

    Args:
        test: What is tried.
    """

    def __init__(self, test: RangeTest) -> None:
        self.test = test
        self._rates: list[float] = []
        self._losses: list[float] = []
        self._raw: list[float] = []
        self._mean = 0.0
        self._best = math.inf
        self._ended: str | None = None

    def add(self, rate: float, loss: float) -> bool:
        """Note the loss of an update with a rate; returns whether the test goes on."""
        if not math.isfinite(loss):
            self._ended = NOT_FINITE
            return False
        keeps = self.test.smoothing
        self._mean = keeps * self._mean + (1 - keeps) * loss
        smoothed = self._mean / (1 - keeps ** (len(self._raw) + 1))
        self._rates.append(rate)
        self._raw.append(loss)
        self._losses.append(smoothed)
        if len(self._raw) >= self.test.settles_after and self._has_diverged(smoothed):
            self._ended = DIVERGED
        return self._ended is None

    def _has_diverged(self, smoothed: float) -> bool:
        """For losses below 0, too, which a factor would make smaller."""
        self._best = min(self._best, smoothed)
        return smoothed > self._best + (self.test.stop_factor - 1) * abs(self._best)

    def result(self) -> LearningRates:
        """What became of the loss."""
        return LearningRates(
            self.test, tuple(self._rates), tuple(self._losses), tuple(self._raw), self._ended or COMPLETE
        )


def _shown(rate: float | None) -> str:
    return "no rate" if rate is None else f"{rate:.1e}"


class Rates:
    """Sets the rate of an optimizer. Its groups move together: each keeps its ratio to the rate that the options name.

    Args:
        optimizer: Any optimizer with rates in its groups.
        base: The rate that `learning_rate` is; None: that of the first group.

    Raises:
        ValueError: It chooses its rates itself.
    """

    def __init__(self, optimizer: Any, base: float | None) -> None:
        self._groups = optimizer.param_groups
        if any(group.get("lr") is None for group in self._groups):
            raise ValueError(f"lr_find: {type(optimizer).__name__} chooses its learning rates itself")
        own = [float(group["lr"]) for group in self._groups]
        base = own[0] if base is None else base
        self._ratios = [rate / base if base else 1.0 for rate in own]

    def set(self, rate: float) -> None:
        """The rate of the next update."""
        for group, ratio in zip(self._groups, self._ratios, strict=True):
            if hasattr(group["lr"], "fill_"):  # a tensor, which compiled steps read
                group["lr"].fill_(rate * ratio)
            else:
                group["lr"] = rate * ratio
