"""Learning-rate schedules by name.

To add one: a function that builds it, and a row in `SCHEDULERS`. `get_scheduler` reads from the function's parameters what
it needs (`num_warmup_steps`, `num_training_steps`) and what options it has (the others).

| module | question it answers |
|---|---|
| `by_name` | which are there, and how is one built? |
| `by_step` | how does the rate follow the number of updates? |
| `by_metric` | how does it follow a metric? |
"""

from __future__ import annotations

from mainspring.schedulers.by_metric import (
    GreedyLR,
    StreamingAverage,
    follows_metric,
    get_greedy_schedule,
    get_reduce_on_plateau_schedule,
)
from mainspring.schedulers.by_name import SCHEDULERS, check_options, get_scheduler
from mainspring.schedulers.by_step import (
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)

__all__ = [
    "SCHEDULERS",
    "GreedyLR",
    "StreamingAverage",
    "check_options",
    "follows_metric",
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_greedy_schedule",
    "get_inverse_sqrt_schedule",
    "get_linear_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup",
    "get_reduce_on_plateau_schedule",
    "get_scheduler",
    "get_wsd_schedule",
]
