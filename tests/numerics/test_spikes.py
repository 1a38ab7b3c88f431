"""The running mean and deviation of the loss, against their definition."""

from __future__ import annotations

import math
import random

import pytest

from mainspring.numerics.spikes import WARM_UP, RunningLoss


def weighted(losses: list[float]) -> tuple[float, float]:
    """Mean and variance by the weights that each loss has in the end."""
    weights: list[float] = []
    for number in range(1, len(losses) + 1):
        new = max(1 / number, 1 / 50)
        weights = [weight * (1 - new) for weight in weights] + [new]
    mean = sum(w * x for w, x in zip(weights, losses, strict=True))
    return mean, sum(w * (x - mean) ** 2 for w, x in zip(weights, losses, strict=True))


@pytest.mark.parametrize("count", [1, 2, 49, 50, 51, 400])
def test_mean_and_variance_are_those_of_the_weighted_losses(count: int) -> None:
    draw = random.Random(count)
    losses = [3 + draw.gauss(0, 1) for _ in range(count)]
    running = RunningLoss()
    for loss in losses:
        running.add(loss)
    mean, variance = weighted(losses)
    assert running.mean == pytest.approx(mean, rel=1e-12)
    assert running.variance == pytest.approx(variance, rel=1e-9, abs=1e-12)


def test_nothing_is_a_spike_before_the_warm_up() -> None:
    running = RunningLoss()
    for number in range(WARM_UP):
        assert not running.is_spike(1e6, 6.0)
        running.add(1.0 + 0.1 * (number % 2))
    assert running.is_spike(1e6, 6.0)


def test_a_spike_lies_above_by_more_than_the_threshold() -> None:
    running = RunningLoss(seen=100, mean=2.0, variance=0.25)
    assert not running.is_spike(2.0 + 6 * 0.5, 6.0)
    assert running.is_spike(2.0 + 6 * 0.5 + 1e-9, 6.0)
    assert not running.is_spike(-1e9, 6.0)  # a loss that falls is no spike
    assert running.is_spike(math.inf, 6.0)


def test_a_loss_that_stands_still_may_move_a_little() -> None:
    running = RunningLoss(seen=100, mean=2.0, variance=0.0)
    assert not running.is_spike(2.1, 6.0)
    assert running.is_spike(2.2, 6.0)


def test_losses_that_are_not_finite_leave_no_trace() -> None:
    running = RunningLoss()
    running.add(1.0)
    before = running.state()
    for loss in (math.nan, math.inf, -math.inf):
        running.add(loss)
    assert running.state() == before
    assert RunningLoss(**before) == running
