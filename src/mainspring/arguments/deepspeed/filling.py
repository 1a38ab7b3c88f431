"""Which settings of a DeepSpeed configuration the options fill in, and where both must agree: one row a setting.

There are three moments. `BY_OPTIONS` follows from the arguments alone, `BY_WORLD` also from how many processes there
are, and `BY_RUN` from the model and from how long it trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mainspring.arguments.deepspeed.reading import AUTO, leaves, put, setting
from mainspring.errors import Problem


@dataclass(frozen=True)
class World:
    """What is known once the processes are.

    Attributes:
        shares: Into how many parts the processes divide the data.
        batch: Samples of a micro-batch.
        accumulated: Micro-batches of an update.
    """

    shares: int
    batch: int
    accumulated: int


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


def _never(_: Any) -> bool:
    return False


def _always(_: Any) -> bool:
    return True


@dataclass(frozen=True)
class Setting:
    """One setting that the options know.

    Attributes:
        path: Where it stands in the configuration, dotted.
        options: The options that it follows from, for messages.
        value: What they make of it; given the arguments, the `World` or the `Run`.
        agrees: Whether another value in the configuration is a contradiction.
        added: Whether it is put in where the configuration does not have it; given the same.
        stage: The only stage of ZeRO that looks at it; None: all do.
    """

    path: str
    options: str
    value: Callable[[Any], Any]
    agrees: bool = True
    added: Callable[[Any], bool] = _never
    stage: int | None = None


def _half(name: str) -> Callable[[Any], bool]:
    """Whether the options, or a launcher where they leave it open, compute in this precision, be it in evaluations."""
    return lambda a: bool(getattr(a, name) or getattr(a, f"{name}_full_eval") or a.mixed_precision == name)


def _asks_for(name: str) -> Callable[[Any], bool]:
    return lambda a: bool(getattr(a, name) or a.mixed_precision == name)


def _size(name: str) -> Callable[[Any], int]:
    """How many processes take part in one way of sharing the work on a sample."""
    return lambda a: int(getattr(a.parallel_sizes, f"{name}_size", 1))


def _shared(name: str) -> Callable[[Any], bool]:
    return lambda a: _size(name)(a) > 1


def _of_hidden_size(value: Callable[[int], int]) -> Callable[[Run], int | None]:
    return lambda run: None if run.hidden_size is None else value(run.hidden_size)


USUAL_STAGE = 2
"""The stage of a launcher that asks for DeepSpeed, and says nothing of it."""

NOWHERE = "none"
"""What stands for a device or a folder where nothing is moved."""

_ZERO = "zero_optimization"
_BY_LAUNCHER = "the launcher"

BY_OPTIONS: tuple[Setting, ...] = (
    Setting(
        "train_micro_batch_size_per_gpu",
        "per_device_train_batch_size",
        lambda a: a.per_device_train_batch_size,
        added=_always,
    ),
    Setting(
        "gradient_accumulation_steps",
        "gradient_accumulation_steps",
        lambda a: a.gradient_accumulation_steps,
        added=_always,
    ),
    Setting("gradient_clipping", "max_grad_norm", lambda a: a.max_grad_norm or 0.0, added=lambda a: a.clips_by_option),
    Setting("optimizer.params.lr", "learning_rate", lambda a: a.learning_rate),
    Setting("optimizer.params.betas", "adam_beta1 and adam_beta2", lambda a: [a.adam_beta1, a.adam_beta2]),
    Setting("optimizer.params.eps", "adam_epsilon", lambda a: a.adam_epsilon),
    Setting("optimizer.params.weight_decay", "weight_decay", lambda a: a.weight_decay),
    Setting("scheduler.params.warmup_min_lr", "whatever the options say", lambda a: 0, agrees=False),
    Setting("scheduler.params.warmup_max_lr", "learning_rate", lambda a: a.learning_rate),
    Setting("fp16.enabled", "fp16 or fp16_full_eval", _half("fp16"), added=_asks_for("fp16")),
    Setting("bf16.enabled", "bf16 or bf16_full_eval", _half("bf16"), added=_asks_for("bf16")),
    Setting("amp.enabled", "whatever the options say", lambda a: False, agrees=False),
    Setting("amp.opt_level", "whatever the options say", lambda a: "O1", agrees=False),
    Setting(
        "checkpoint.use_node_local_storage",
        "save_on_each_node",
        lambda a: a.save_on_each_node,
        added=lambda a: a.save_on_each_node,
    ),
    Setting("sequence_parallel_size", "parallelism_config (sp_size)", _size("sp"), added=_shared("sp")),
    Setting("tensor_parallel.autotp_size", "parallelism_config (tp_size)", _size("tp"), added=_shared("tp")),
    Setting(
        "tensor_parallel.vocab_parallel_lm_head",  # else predictions may be of a part of the vocabulary
        "parallelism_config (tp_size)",
        lambda a: False,
        agrees=False,
        added=_shared("tp"),
    ),
    # What Accelerate's own files leave to its launcher, where that does not say it.
    Setting(f"{_ZERO}.stage", _BY_LAUNCHER, lambda a: USUAL_STAGE, agrees=False),
    Setting(f"{_ZERO}.stage3_gather_16bit_weights_on_model_save", _BY_LAUNCHER, lambda a: False, agrees=False),
    *(
        Setting(f"{_ZERO}.offload_{what}.{name}", _BY_LAUNCHER, lambda a: NOWHERE, agrees=False)
        for what in ("optimizer", "param")
        for name in ("device", "nvme_path")
    ),
)

BY_WORLD: tuple[Setting, ...] = (
    Setting(
        "train_batch_size",
        "processes x per_device_train_batch_size x gradient_accumulation_steps",
        lambda world: world.shares * world.batch * world.accumulated,
        added=_always,
    ),
)

BY_RUN: tuple[Setting, ...] = (
    Setting("scheduler.params.total_num_steps", "the updates of the run", lambda run: run.total_steps),
    Setting(
        "scheduler.params.warmup_num_steps",
        "warmup_steps",
        lambda run: max(1, run.warmup_steps),  # DeepSpeed divides by it
    ),
    Setting(f"{_ZERO}.reduce_bucket_size", "the hidden size", _of_hidden_size(lambda h: h * h), agrees=False),
    Setting(
        f"{_ZERO}.stage3_prefetch_bucket_size",
        "the hidden size",
        _of_hidden_size(lambda h: int(0.9 * h * h)),
        agrees=False,
        stage=3,
    ),
    Setting(
        f"{_ZERO}.stage3_param_persistence_threshold",
        "the hidden size",
        _of_hidden_size(lambda h: 10 * h),
        agrees=False,
        stage=3,
    ),
)

LATER: Mapping[str, str] = {row.path: row.options for row in (*BY_WORLD, *BY_RUN)}
"""Settings that the arguments alone do not fill in, with what they follow from."""


def left_to_run(path: str) -> str:
    """When a setting is filled in that the arguments alone do not know."""
    by_world = any(row.path == path for row in BY_WORLD)
    return "filled in when the trainer is built" if by_world else "filled in when training begins"


def leave_open(config: dict[str, Any], rows: Sequence[Setting], source: Any) -> None:
    """Put "auto" where the configuration lacks a setting that belongs there."""
    for row in rows:
        if setting(config, row.path) is None and row.added(source):
            put(config, row.path, AUTO)


def fill(
    config: dict[str, Any], rows: Sequence[Setting], source: Any, said_by: Mapping[str, str] | None = None
) -> tuple[dict[str, str], list[Problem]]:
    """Put into `config` what `source` knows; returns what these values followed from, and what contradicts it.

    Args:
        config: Changed in place.
        rows: The settings.
        source: The arguments, the `World` or the `Run`, as the rows want it.
        said_by: Who says a setting, by its path, where that is not the option itself: for the messages.
    """
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    stage = setting(config, f"{_ZERO}.stage")
    for row in rows:
        there = setting(config, row.path)
        if there is None or (there != AUTO and not row.agrees) or row.stage not in (None, stage):
            continue
        known = row.value(source)
        if there != AUTO:
            problems += [] if _same(there, known) else [_contradiction(row, there, known, said_by or {})]
        elif known is None:
            problems.append(_unknown(row))
        else:
            put(config, row.path, known)
            origins[row.path] = row.options
    return origins, problems


def left_over(config: Mapping[str, Any]) -> Iterator[Problem]:
    """A complaint for each value that is left to the options although they do not know it."""
    for path, value in leaves(config):
        if value == AUTO and path not in LATER and path not in _AUTO_OF_DEEPSPEED:
            yield Problem(named(path), AUTO, "no option says what it is", "write the value, or leave it out")


_AUTO_OF_DEEPSPEED = ("data_types.keep_in_fp32_modules",)
"""Settings of which DeepSpeed itself knows the value "auto"."""


def named(path: str) -> str:
    """How messages name a setting."""
    return f"deepspeed {path}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return math.isclose(one, other, rel_tol=1e-9) if numbers else bool(one == other)


def _contradiction(row: Setting, there: Any, known: Any, said_by: Mapping[str, str]) -> Problem:
    by_launcher = said_by.get(row.path)
    who = f" (by {by_launcher})" if by_launcher else ""
    why = f"the options say {known!r} ({row.options})"
    return Problem(f"{named(row.path)}{who}", there, why, "say the same, or write 'auto'")


def _unknown(row: Setting) -> Problem:
    why = f"follows from {row.options}, which the model's configuration does not say"
    return Problem(named(row.path), AUTO, why, "write the value")
