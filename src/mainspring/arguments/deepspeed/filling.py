"""Which settings of a DeepSpeed configuration the options fill in, and where both must agree: one row a setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mainspring.arguments.deepspeed.reading import AUTO, put, setting
from mainspring.errors import Problem


@dataclass(frozen=True)
class Run:
    """What is known when training begins.

    Attributes:
        hidden_size: Of the model; None where it does not say.
        total_steps: Updates of the run.
        warmup_steps: Those of them that warm up.
    """

    hidden_size: int | None
    total_steps: int
    warmup_steps: int


@dataclass(frozen=True)
class Setting:
    """One setting that the options know.

    Attributes:
        path: Where it stands in the configuration, dotted.
        options: The options that it follows from, for messages.
        value: What they make of it, from the arguments; or from the `Run`, where `late`.
        agrees: Whether another value in the configuration is a contradiction.
        added: Whether it is put in where the configuration does not have it.
        late: Whether it is known only when training begins.
    """

    path: str
    options: str
    value: Callable[[Any], Any]
    agrees: bool = True
    added: bool = False
    late: bool = False


def _half(name: str) -> Callable[[Any], bool]:
    return lambda a: bool(getattr(a, name) or getattr(a, f"{name}_full_eval"))


def _samples(a: Any) -> int:
    return int(a.world_size * a.per_device_train_batch_size * a.gradient_accumulation_steps)


def _squared(run: Run) -> int | None:
    return None if run.hidden_size is None else run.hidden_size**2


def _prefetched(run: Run) -> int | None:
    return None if run.hidden_size is None else int(0.9 * run.hidden_size**2)


def _kept(run: Run) -> int | None:
    return None if run.hidden_size is None else 10 * run.hidden_size


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "train_micro_batch_size_per_gpu",
        "per_device_train_batch_size",
        lambda a: a.per_device_train_batch_size,
        added=True,
    ),
    Setting(
        "gradient_accumulation_steps",
        "gradient_accumulation_steps",
        lambda a: a.gradient_accumulation_steps,
        added=True,
    ),
    Setting(
        "train_batch_size",
        "processes x per_device_train_batch_size x gradient_accumulation_steps",
        _samples,
        added=True,
    ),
    Setting("gradient_clipping", "max_grad_norm", lambda a: a.max_grad_norm or 0.0, added=True),
    Setting("optimizer.params.lr", "learning_rate", lambda a: a.learning_rate),
    Setting("optimizer.params.betas", "adam_beta1 and adam_beta2", lambda a: [a.adam_beta1, a.adam_beta2]),
    Setting("optimizer.params.eps", "adam_epsilon", lambda a: a.adam_epsilon),
    Setting("optimizer.params.weight_decay", "weight_decay", lambda a: a.weight_decay),
    Setting("scheduler.params.warmup_min_lr", "nothing: 0", lambda a: 0, agrees=False),
    Setting("scheduler.params.warmup_max_lr", "learning_rate", lambda a: a.learning_rate),
    Setting("fp16.enabled", "fp16 or fp16_full_eval", _half("fp16")),
    Setting("bf16.enabled", "bf16 or bf16_full_eval", _half("bf16")),
    Setting("scheduler.params.total_num_steps", "the updates of the run", lambda run: run.total_steps, late=True),
    Setting(
        "scheduler.params.warmup_num_steps",
        "warmup_steps",
        lambda run: max(1, run.warmup_steps),  # DeepSpeed refuses 0
        late=True,
    ),
    Setting("zero_optimization.reduce_bucket_size", "the hidden size", _squared, agrees=False, late=True),
    Setting("zero_optimization.stage3_prefetch_bucket_size", "the hidden size", _prefetched, agrees=False, late=True),
    Setting("zero_optimization.stage3_param_persistence_threshold", "the hidden size", _kept, agrees=False, late=True),
)
"""Every setting that the options fill in."""


def fill(config: dict[str, Any], source: Any, late: bool) -> tuple[dict[str, str], list[Problem]]:
    """Put into `config` what `source` knows; returns where each of these values came from, and what contradicts it.

    Args:
        config: Changed in place.
        source: The arguments; or the `Run`, where `late`.
        late: Whether training begins.
    """
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    for row in SETTINGS:
        if row.late != late:
            continue
        there, known = setting(config, row.path), row.value(source)
        if there == AUTO or (there is None and row.added):
            if known is None:
                problems.append(_unknown(row))
            else:
                put(config, row.path, known)
                origins[row.path] = row.options
        elif there is not None and row.agrees and not _same(there, known):
            problems.append(_contradiction(row, there, known))
    return origins, problems


def left_over(config: Mapping[str, Any], path: str = "") -> Iterator[Problem]:
    """A complaint for each value that is left to the options although they do not know it."""
    for key, value in config.items():
        place = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            yield from left_over(value, place)
        elif value == AUTO:
            yield Problem(_named(place), AUTO, "no option says what it is", "write the value, or leave it out")


def is_late(path: str) -> bool:
    """Whether a setting is filled in only when training begins."""
    return any(row.path == path and row.late for row in SETTINGS)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return math.isclose(one, other, rel_tol=1e-9) if numbers else bool(one == other)


def _contradiction(row: Setting, there: Any, known: Any) -> Problem:
    return Problem(
        _named(row.path), there, f"the options say {known!r} ({row.options})", "say the same, or write 'auto'"
    )


def _unknown(row: Setting) -> Problem:
    why = f"follows from {row.options}, which the model's configuration does not say"
    return Problem(_named(row.path), AUTO, why, "write the value")


def _named(path: str) -> str:
    return f"deepspeed {path}"
