"""Schedules that follow the number of updates.

Each multiplies every group's initial learning rate by a factor of t, the updates done so far (0 at the first); W is the
number of warm-up updates and T that of all updates. Factors are plain functions of this module, so a scheduler can be
pickled and its state holds numbers alone.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# Pieces -----------------------------------------------------------------------------------------------------------


def _warmup(t: int, warmup: int) -> float:
    """From 0 to 1 in a straight line: t / W."""
    return t / max(1, warmup)


def _progress(t: int, warmup: int, total: int) -> float:
    """The share done of what follows the warm-up: (t - W) / (T - W)."""
    return (t - warmup) / max(1, total - warmup)


def _peak(optimizer: Optimizer) -> float:
    """The learning rate that the optimizer was given; that of its first group where several were put together as one."""
    group = optimizer.param_groups[0]
    return float(optimizer.defaults.get("lr", group.get("initial_lr", group["lr"])))


def _raised(factor: float, floor: float) -> float:
    """A factor in [0, 1], rescaled to [floor, 1]."""
    return factor * (1 - floor) + floor


# Constant ---------------------------------------------------------------------------------------------------------


def _constant(t: int) -> float:
    return 1.0


def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """The initial learning rate throughout: factor 1."""
    return LambdaLR(optimizer, _constant, last_epoch=last_epoch)


def _constant_with_warmup(t: int, *, warmup: int) -> float:
    return _warmup(t, warmup) if t < warmup else 1.0


def get_constant_schedule_with_warmup(optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1) -> LambdaLR:
    """Factor t / W during warm-up, then 1."""
    return LambdaLR(optimizer, partial(_constant_with_warmup, warmup=num_warmup_steps), last_epoch=last_epoch)


# Falling ----------------------------------------------------------------------------------------------------------


def _linear(t: int, *, warmup: int, total: int) -> float:
    if t < warmup:
        return _warmup(t, warmup)
    return max(0.0, (total - t) / max(1, total - warmup))


def get_linear_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> LambdaLR:
    """Factor t / W during warm-up, then (T - t) / (T - W), and 0 from T on."""
    factor = partial(_linear, warmup=num_warmup_steps, total=num_training_steps)
    return LambdaLR(optimizer, factor, last_epoch=last_epoch)


def _polynomial(t: int, *, warmup: int, total: int, power: float, lr: float, lr_end: float) -> float:
    if t < warmup:
        return _warmup(t, warmup)
    # At t = T the formula gives the end too, but it cannot be evaluated when nothing follows the warm-up.
    if t >= total:
        return lr_end / lr
    remaining = 1 - (t - warmup) / (total - warmup)
    shape: float = remaining**power
    return ((lr - lr_end) * shape + lr_end) / lr


def get_polynomial_decay_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """Factor t / W during warm-up, then from 1 to lr_end / lr as (1 - (t - W) / (T - W))^power, and there from T on.

    Args:
        optimizer: `lr` is the learning rate it was given.
        num_warmup_steps: W.
        num_training_steps: T.
        lr_end: The final learning rate.
        power: 1 is a straight line.
        last_epoch: The last update done when resuming; -1 at the start.

    Raises:
        ValueError: `lr_end` is not below the learning rate.
    """
    lr = _peak(optimizer)
    if not lr > lr_end:
        raise ValueError(
            f"lr_scheduler_kwargs: lr_end={lr_end} is not below learning_rate={lr}; choose a smaller lr_end"
        )
    factor = partial(_polynomial, warmup=num_warmup_steps, total=num_training_steps, power=power, lr=lr, lr_end=lr_end)
    return LambdaLR(optimizer, factor, last_epoch=last_epoch)


def _inverse_sqrt(t: int, *, warmup: int, timescale: float) -> float:
    if t < warmup:
        return _warmup(t, warmup)
    return 1.0 / math.sqrt((t + (timescale - warmup)) / timescale)


def get_inverse_sqrt_schedule(
    optimizer: Optimizer, num_warmup_steps: int, timescale: int | None = None, last_epoch: int = -1
) -> LambdaLR:
    """Factor t / W during warm-up, then 1 / sqrt((t + s - W) / s) without an end.

    Args:
        optimizer: The optimizer.
        num_warmup_steps: W.
        timescale: s, by default W, or 10000 without warm-up.
        last_epoch: The last update done when resuming; -1 at the start.
    """
    factor = partial(_inverse_sqrt, warmup=num_warmup_steps, timescale=timescale or num_warmup_steps or 10_000)
    return LambdaLR(optimizer, factor, last_epoch=last_epoch)


# Cosine (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983) ------------------------------------------------


def _cosine_wave(progress: float, cycles: float) -> float:
    """(1 + cos(2 pi cycles p)) / 2: half a cycle falls from 1 to 0, a whole one comes back to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress))


def _cosine(t: int, *, warmup: int, total: int, cycles: float, floor: float = 0.0) -> float:
    if t < warmup:
        return _warmup(t, warmup)
    return max(0.0, _raised(_cosine_wave(_progress(t, warmup, total), cycles), floor))


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, num_cycles: float = 0.5, last_epoch: int = -1
) -> LambdaLR:
    """Factor t / W during warm-up, then (1 + cos(2 pi c p)) / 2 with p = (t - W) / (T - W) and c = `num_cycles`.

    The default, half a cycle, falls from 1 to 0.
    """
    factor = partial(_cosine, warmup=num_warmup_steps, total=num_training_steps, cycles=num_cycles)
    return LambdaLR(optimizer, factor, last_epoch=last_epoch)


def _cosine_with_restarts(t: int, *, warmup: int, total: int, cycles: float) -> float:
    if t < warmup:
        return _warmup(t, warmup)
    progress = _progress(t, warmup, total)
    return 0.0 if progress >= 1 else max(0.0, 0.5 * (1 + math.cos(math.pi * ((cycles * progress) % 1))))


def get_cosine_with_hard_restarts_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, num_cycles: int = 1, last_epoch: int = -1
) -> LambdaLR:
    """Factor t / W during warm-up, then `num_cycles` falls from 1 to 0: (1 + cos(pi (c p mod 1))) / 2; 0 from T on."""
    factor = partial(_cosine_with_restarts, warmup=num_warmup_steps, total=num_training_steps, cycles=num_cycles)
    return LambdaLR(optimizer, factor, last_epoch=last_epoch)


def _floor(optimizer: Optimizer, min_lr: float | None, min_lr_rate: float | None) -> float:
    """The lowest factor, given as a learning rate or as the factor itself."""
    if (min_lr is None) == (min_lr_rate is None):
        given = "both are" if min_lr is not None else "neither is"
        raise ValueError(f"lr_scheduler_kwargs: one of min_lr and min_lr_rate is needed, but {given} given; give one")
    if min_lr_rate is not None:
        return min_lr_rate
    assert min_lr is not None
    return min_lr / _peak(optimizer)


def get_cosine_with_min_lr_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> LambdaLR:
    """The cosine schedule, its fall rescaled to end at a learning rate above 0; the warm-up starts from 0.

    Args:
        optimizer: The optimizer.
        num_warmup_steps: W.
        num_training_steps: T.
        num_cycles: Half a cycle falls once.
        last_epoch: The last update done when resuming; -1 at the start.
        min_lr: The lowest learning rate.
        min_lr_rate: The same as a share of the initial one.

    Raises:
        ValueError: Not exactly one of `min_lr` and `min_lr_rate` is given.
    """
    floor = _floor(optimizer, min_lr, min_lr_rate)
    factor = partial(_cosine, warmup=num_warmup_steps, total=num_training_steps, cycles=num_cycles, floor=floor)
    return LambdaLR(optimizer, factor, last_epoch=last_epoch)


def _cosine_from_rate(t: int, *, warmup: int, total: int, cycles: float, floor: float, start: float | None) -> float:
    if t < warmup:
        return (t + 1.0) / max(1.0, warmup) if start is None else start + (1.0 - start) * t / max(1, warmup - 1)
    progress = (t - warmup + 1.0) / max(1.0, total - warmup)
    return max(0.0, _raised(_cosine_wave(progress, cycles), floor))


def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> LambdaLR:
    """The cosine schedule from a first update above 0 down to a learning rate above 0, which the last update reaches.

    Warm-up: (t + 1) / W, or r + (1 - r) t / (W - 1) from r = `warmup_lr_rate`. Then the cosine of
    p = (t - W + 1) / (T - W), rescaled.

    Args:
        optimizer: The optimizer.
        num_warmup_steps: W.
        num_training_steps: T.
        num_cycles: Half a cycle falls once.
        last_epoch: The last update done when resuming; -1 at the start.
        min_lr: The lowest learning rate after warm-up.
        min_lr_rate: The same as a share of the initial one.
        warmup_lr_rate: The share that warm-up starts from; by default 1 / W.

    Raises:
        ValueError: Not exactly one of `min_lr` and `min_lr_rate` is given.
    """
    factor = partial(
        _cosine_from_rate,
        warmup=num_warmup_steps,
        total=num_training_steps,
        cycles=num_cycles,
        floor=_floor(optimizer, min_lr, min_lr_rate),
        start=warmup_lr_rate,
    )
    return LambdaLR(optimizer, factor, last_epoch=last_epoch)


# Warm-up, plateau, decay (Hu et al. 2024, https://arxiv.org/abs/2404.06395) -----------------------------------------


def _linear_rise(progress: float, cycles: float) -> float:
    return progress


def _cosine_rise(progress: float, cycles: float) -> float:
    return 0.5 * (1.0 - math.cos(math.pi * progress))


def _sqrt_rise(progress: float, cycles: float) -> float:
    return 1.0 - math.sqrt(1.0 - progress)


def _linear_fall(progress: float, cycles: float) -> float:
    return 1.0 - progress


def _sqrt_fall(progress: float, cycles: float) -> float:
    return 1.0 - math.sqrt(progress)


_RISES = {"linear": _linear_rise, "cosine": _cosine_rise, "1-sqrt": _sqrt_rise}
_FALLS = {"linear": _linear_fall, "cosine": _cosine_wave, "1-sqrt": _sqrt_fall}


def _warmup_stable_decay(
    t: int, *, warmup: int, stable: int, decay: int, warmup_type: str, decay_type: str, floor: float, cycles: float
) -> float:
    if t < warmup:
        return max(0.0, _raised(_RISES[warmup_type](t / max(1, warmup), cycles), floor))
    if t < warmup + stable:
        return 1.0
    if t < warmup + stable + decay:
        return max(0.0, _raised(_FALLS[decay_type]((t - warmup - stable) / max(1, decay), cycles), floor))
    return floor


def get_wsd_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_decay_steps: int,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> LambdaLR:
    """Rise to 1, stay there, fall to `min_lr_ratio` and stay there.

    Args:
        optimizer: The optimizer.
        num_warmup_steps: W, the updates of the rise.
        num_decay_steps: D, the updates of the fall.
        num_training_steps: T; not needed with `num_stable_steps`.
        num_stable_steps: The updates at 1, by default T - W - D.
        warmup_type: Shape of the rise: "linear", "cosine" or "1-sqrt" (1 - sqrt(1 - p)).
        decay_type: Shape of the fall: "linear", "cosine" or "1-sqrt" (1 - sqrt(p)).
        min_lr_ratio: The factor that the rise starts from and the fall ends at.
        num_cycles: Of the cosine fall; half a cycle falls once.
        last_epoch: The last update done when resuming; -1 at the start.

    Raises:
        ValueError: An unknown shape, or neither `num_training_steps` nor `num_stable_steps`.
    """
    for option, value, known in (("warmup_type", warmup_type, _RISES), ("decay_type", decay_type, _FALLS)):
        if value not in known:
            raise ValueError(f"lr_scheduler_kwargs: {option}={value!r} is unknown; use one of: {', '.join(known)}")
    if num_stable_steps is None:
        if num_training_steps is None:
            raise ValueError("num_training_steps=None: the plateau has no length; pass it, or num_stable_steps")
        num_stable_steps = num_training_steps - num_warmup_steps - num_decay_steps
    factor = partial(
        _warmup_stable_decay,
        warmup=num_warmup_steps,
        stable=num_stable_steps,
        decay=num_decay_steps,
        warmup_type=warmup_type,
        decay_type=decay_type,
        floor=min_lr_ratio,
        cycles=num_cycles,
    )
    return LambdaLR(optimizer, factor, last_epoch=last_epoch)
