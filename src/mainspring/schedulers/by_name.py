"""The table of schedules, and how one of them is built."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mainspring.errors import did_you_mean
from mainspring.names import SCHEDULER_NAMES
from mainspring.registry import Registry

SCHEDULERS = Registry(
    "learning-rate schedule",
    {
        "linear": "mainspring.schedulers:get_linear_schedule_with_warmup",
        "cosine": "mainspring.schedulers:get_cosine_schedule_with_warmup",
        "cosine_with_restarts": "mainspring.schedulers:get_cosine_with_hard_restarts_schedule_with_warmup",
        "polynomial": "mainspring.schedulers:get_polynomial_decay_schedule_with_warmup",
        "constant": "mainspring.schedulers:get_constant_schedule",
        "constant_with_warmup": "mainspring.schedulers:get_constant_schedule_with_warmup",
        "inverse_sqrt": "mainspring.schedulers:get_inverse_sqrt_schedule",
        "reduce_lr_on_plateau": "mainspring.schedulers:get_reduce_on_plateau_schedule",
        "cosine_with_min_lr": "mainspring.schedulers:get_cosine_with_min_lr_schedule_with_warmup",
        "cosine_warmup_with_min_lr": "mainspring.schedulers:get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
        "warmup_stable_decay": "mainspring.schedulers:get_wsd_schedule",
        "greedy": "mainspring.schedulers:get_greedy_schedule",
    },
)


def get_scheduler(
    name: str,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: Mapping[str, Any] | None = None,
) -> LRScheduler:
    """Build the schedule of this name.

    Args:
        name: A name in `SCHEDULERS`, or an enumeration member with such a value.
        optimizer: Its groups' learning rates at this moment are what the factors multiply.
        num_warmup_steps: W, in updates; not needed by schedules without warm-up.
        num_training_steps: T, in updates; not needed by schedules that do not end.
        scheduler_specific_kwargs: The schedule's own options, e.g. `{"num_cycles": 2}`.

    Raises:
        ValueError: Unknown name or option, or a number of steps that this schedule needs is missing.
    """
    name = str(getattr(name, "value", name))
    build: Callable[..., LRScheduler] = SCHEDULERS[name]
    parameters = inspect.signature(build).parameters
    steps = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    needed = {key: value for key, value in steps.items() if key in parameters}
    options = dict(scheduler_specific_kwargs or {})
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        refuse_unknown(name, options, [key for key in parameters if key not in ("optimizer", "last_epoch", *steps)])
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD and key != "optimizer":
            _require(name, key, needed, options)
    return build(optimizer, **needed, **options)


def check_options(name: str, options: Mapping[str, Any] | None, learning_rate: float) -> None:
    """Refuse, before there is an optimizer, options that a schedule of this package cannot be built with.

    Args:
        name: A name in `SCHEDULERS`; what a user has added to it is left alone.
        options: The schedule's own.
        learning_rate: The peak.

    Raises:
        ValueError: Naming the option.
    """
    name = str(getattr(name, "value", name))
    if name not in SCHEDULER_NAMES:
        return
    stand_in = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    # What is given for each of an optimizer's groups stands for all of them here.
    first = {key: value[0] if isinstance(value, list) and value else value for key, value in (options or {}).items()}
    with warnings.catch_warnings():  # which come when it is built
        warnings.simplefilter("ignore")
        get_scheduler(name, stand_in, 0, 1, first)


def refuse_unknown(name: str, options: Mapping[str, Any], known: list[str]) -> None:
    """Refuse options that a schedule does not have.

    Raises:
        ValueError: Naming the first of them.
    """
    for key, value in options.items():
        if key not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise ValueError(
                f"lr_scheduler_kwargs: {key}={value!r} is no option of schedule {name!r}; {has}{did_you_mean(key, known)}"
            )


def _require(name: str, key: str, needed: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    if key in needed and needed[key] is None:
        raise ValueError(f"{key}=None: schedule {name!r} needs it; pass the number of updates")
    if key not in needed and key not in options:
        raise ValueError(f"lr_scheduler_kwargs: schedule {name!r} needs {key!r}; add it, e.g. {{{key!r}: 100}}")
