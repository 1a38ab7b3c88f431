"""Schedules that follow a metric: they move at evaluations, not at updates."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mainspring.schedulers.by_name import refuse_unknown


def follows_metric(scheduler: Any) -> bool:
    """Whether `scheduler.step` takes a metric."""
    return isinstance(scheduler, (ReduceLROnPlateau, GreedyLR))


def get_reduce_on_plateau_schedule(optimizer: Optimizer, **kwargs: Any) -> LRScheduler:
    """`torch.optim.lr_scheduler.ReduceLROnPlateau`: lower when a metric, given to `step`, stops improving.

    Args:
        optimizer: The optimizer.
        **kwargs: Its options (`mode`, `factor`, `patience`, ...).

    Raises:
        ValueError: An option that it does not have.
    """
    refuse_unknown("reduce_lr_on_plateau", kwargs, _options_of(ReduceLROnPlateau))
    return ReduceLROnPlateau(optimizer, **kwargs)


def get_greedy_schedule(optimizer: Optimizer, **kwargs: Any) -> GreedyLR:
    """`GreedyLR`: higher while a metric, given to `step`, improves, and lower when it does not.

    Args:
        optimizer: The optimizer.
        **kwargs: Its options (`mode`, `factor`, `patience`, ...).

    Raises:
        ValueError: An option that it does not have.
    """
    refuse_unknown("greedy", kwargs, _options_of(GreedyLR))
    schedule = GreedyLR(optimizer, **kwargs)
    pairs = zip(schedule.get_last_lr(), schedule.min_lrs, strict=True)
    if below := next((pair for pair in pairs if pair[0] < pair[1]), None):
        rate, lowest = below
        warnings.warn(
            f"lr_scheduler_kwargs: min_lr={lowest:g} of schedule 'greedy' is above learning_rate={rate:g}, which is never "
            "lowered then; give a min_lr below it",
            UserWarning,
            stacklevel=3,
        )
    return schedule


def _options_of(scheduler: type) -> list[str]:
    return [name for name in inspect.signature(scheduler).parameters if name != "optimizer"]


class StreamingAverage:
    """The mean of the last values.

    Args:
        window_size: How many of them.
    """

    def __init__(self, window_size: int) -> None:
        self.window_size = window_size
        self.values: list[float] = []
        self.sum = 0.0

    def streamavg(self, value: float) -> float:
        """Take in a value, and return the mean."""
        self.values.append(value)
        self.sum += value
        if len(self.values) > self.window_size:
            self.sum -= self.values.pop(0)
        return self.sum / len(self.values)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"window_size": self.window_size, "values": list(self.values), "sum": self.sum}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self.window_size = state_dict["window_size"]
        self.values = list(state_dict["values"])
        self.sum = state_dict["sum"]


class GreedyLR:
    """Raise the learning rate while a metric improves, and lower it while it does not.

    After more than `patience` improvements in a row every group's rate is divided by `factor`, after more than `patience`
    values without one it is multiplied by it, within bounds; the next `warmup` or `cooldown` values are then not judged.
    When it has been at its lower bound for `reset_start` times that it was to be lowered, it begins anew from the initial
    rate. https://arxiv.org/abs/2512.14527.

    Args:
        optimizer: Its groups' learning rates at this moment are those to begin with.
        mode: Whether less of the metric is better ("min") or more ("max").
        factor: Below 1.
        patience: Values that are waited for.
        threshold: By how much a value must be better than the best.
        threshold_mode: Whether that is a difference ("abs") or a share of the best ("rel").
        cooldown: Values that are not judged after the rate was lowered.
        warmup: The same, after it was raised.
        min_lr: The lowest rate: for all groups, or for each.
        max_lr: The highest.
        eps: Smaller changes are not made.
        verbose: Whether every change is printed.
        smooth: Whether the mean of the last values is judged.
        window_size: How many that are.
        reset_start: How often it has to be at the lower bound before it begins anew.

    Raises:
        ValueError: `factor` is not below 1, an unknown mode, or a number of bounds that is not that of the groups.
    """

    best: float
    num_good_epochs: int
    num_bad_epochs: int
    cooldown_counter: int
    warmup_counter: int

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: str = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_lr: float | Sequence[float] = 1e-3,
        max_lr: float | Sequence[float] = 1.0,
        eps: float = 1e-8,
        verbose: bool = False,
        smooth: bool = False,
        window_size: int = 50,
        reset_start: int = 500,
    ) -> None:
        if factor >= 1.0:
            raise ValueError(f"factor={factor}: a rate is lowered by it; choose one below 1")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        _one_of("mode", mode, ("min", "max"))
        _one_of("threshold_mode", threshold_mode, ("abs", "rel"))
        self.optimizer = optimizer
        self.mode, self.threshold, self.threshold_mode = mode, threshold, threshold_mode
        self.factor, self.patience, self.eps, self.verbose = factor, patience, eps, verbose
        self.cooldown, self.warmup = cooldown, warmup
        self.smooth, self.window_size = smooth, window_size
        self.reset_start = self.reset_start_original = reset_start
        self.min_lrs = self._per_group("min_lr", min_lr)
        self.max_lrs = self._per_group("max_lr", max_lr)
        self.last_epoch = 0
        self._init_lrs = self._rates()
        self._last_lr = self._rates()
        self._streaming_avg = StreamingAverage(window_size) if smooth else None
        self._forget()

    def step(self, metrics: float, epoch: int | None = None) -> None:
        """Judge a value of the metric."""
        value = float(metrics)
        if self._streaming_avg is not None:
            value = self._streaming_avg.streamavg(value)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self.cooldown_counter > 0 or self.warmup_counter > 0:
            self._wait()
        else:
            self._judge(value)
        self._last_lr = self._rates()

    def get_last_lr(self) -> list[float]:
        """The present rate of each group."""
        return self._last_lr

    def is_better(self, current: float, best: float) -> bool:
        """Whether a value counts as an improvement."""
        sign = -1.0 if self.mode == "min" else 1.0
        if self.threshold_mode == "rel":
            bar = best * (1.0 + sign * self.threshold)
        else:
            bar = best + sign * self.threshold
        return current < bar if self.mode == "min" else current > bar

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: numbers and texts alone."""
        state = {key: value for key, value in vars(self).items() if key not in ("optimizer", "_streaming_avg")}
        if self._streaming_avg is not None:
            state["_streaming_avg"] = self._streaming_avg.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; the groups get its rates."""
        state = dict(state_dict)
        average = state.pop("_streaming_avg", None)
        vars(self).update(state)
        if average is not None:
            self._streaming_avg = self._streaming_avg or StreamingAverage(self.window_size)
            self._streaming_avg.load_state_dict(average)
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            _set_rate(group, rate)

    def _wait(self) -> None:
        """One of the values after a change, which is not judged."""
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
        else:
            self.warmup_counter -= 1
        self.num_bad_epochs = self.num_good_epochs = 0

    def _judge(self, value: float) -> None:
        if self.is_better(value, self.best):
            self.best = value
            self.num_good_epochs, self.num_bad_epochs = self.num_good_epochs + 1, 0
        else:
            self.num_good_epochs, self.num_bad_epochs = 0, self.num_bad_epochs + 1
        if self.num_good_epochs > self.patience:
            self._raise_rates()
            self.warmup_counter, self.num_good_epochs = self.warmup, 0
        elif self.num_bad_epochs > self.patience:
            self._lower_rates()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _raise_rates(self) -> None:
        for index, (group, highest) in enumerate(zip(self.optimizer.param_groups, self.max_lrs, strict=True)):
            rate = min(float(group["lr"]) / self.factor, highest)
            if rate - float(group["lr"]) > self.eps:
                self._set(index, group, rate)
        self.reset_start = self.reset_start_original

    def _lower_rates(self) -> None:
        for index, (group, lowest) in enumerate(zip(self.optimizer.param_groups, self.min_lrs, strict=True)):
            rate = max(float(group["lr"]) * self.factor, lowest)
            if float(group["lr"]) - rate > self.eps:
                self._set(index, group, rate)
        if any(rate > lowest for rate, lowest in zip(self._rates(), self.min_lrs, strict=True)):
            return
        self.reset_start -= 1
        if self.reset_start <= 0:
            self._begin_anew()

    def _set(self, index: int, group: dict[str, Any], rate: float) -> None:
        if self.verbose:
            print(  # noqa: T201
                f"step {self.last_epoch}: learning rate of group {index} from {group['lr']:.4e} to {rate:.4e}"
            )
        _set_rate(group, rate)

    def _begin_anew(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._init_lrs, strict=True):
            _set_rate(group, rate)
        self.reset_start = self.reset_start_original
        if self._streaming_avg is not None:
            self._streaming_avg = StreamingAverage(self.window_size)
        self._forget()

    def _forget(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.num_good_epochs = self.num_bad_epochs = 0
        self.cooldown_counter = self.warmup_counter = 0

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _per_group(self, name: str, bound: float | Sequence[float]) -> list[float]:
        count = len(self.optimizer.param_groups)
        if not isinstance(bound, (list, tuple)):
            return [bound] * count  # type: ignore[list-item]
        if len(bound) != count:
            raise ValueError(
                f"{name}={bound!r} has {len(bound)} values, and the optimizer {count} groups; give one each"
            )
        return list(bound)


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):  # compiled updates read it where it lies
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{option}={value!r} is unknown; use one of: {', '.join(known)}")
