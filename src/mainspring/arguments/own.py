"""The options that the reference does not have, and what they resolve to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mainspring.arguments.compat import BEHAVIOURS, COMPAT, Behaviour
from mainspring.arguments.measuring import MeasuringArguments
from mainspring.arguments.numerics import NumericsArguments
from mainspring.arguments.option import option, positive
from mainspring.errors import did_you_mean

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]?\d)(?::(?P<seconds>[0-5]?\d))?")


def seconds_of(time: str | float) -> float | None:
    """Seconds of a time as SLURM writes it, `[days-]hours:minutes[:seconds]`, or of a number; None for anything else."""
    if isinstance(time, (int, float)):
        return float(time)
    found = _TIME.fullmatch(time.strip())
    if found is None:
        return float(time) if re.fullmatch(r"\d+(\.\d*)?", time.strip()) else None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _is_time(time: str | float) -> str | None:
    seconds = seconds_of(time)
    if seconds is None:
        return "is neither a number of seconds nor [days-]hours:minutes[:seconds]"
    return None if seconds > 0 else "must be above 0"


_SIZE = re.compile(r"(?P<number>\d+(\.\d*)?) ?(?P<unit>[KMGT]i?)?B?", re.IGNORECASE)
EVAL_MEMORY = 2_000_000_000
"""Bytes for the predictions of an evaluation, by default."""

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def bytes_of(size: str | float) -> int | None:
    """Bytes of a size such as 2GB (of 1000 MB) or 512MiB (of 1024 KiB), or of a number; None for anything else."""
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        if found is None:
            return None
        unit = (found["unit"] or "").upper()
        count = float(found["number"]) * (1024 if unit.endswith("I") else 1000) ** _POWERS[unit[:1]]
    else:
        count = size
    return int(count) if math.isfinite(count) else None


def _is_size(size: str | float) -> str | None:
    found = bytes_of(size)
    if found is None:
        return "is neither a number of bytes nor a size such as 500MB or 2GiB"
    return None if found >= 0 else "must not be below 0"


def _is_share(number: float) -> str | None:
    return None if 0 < number < 1 else "must be above 0 and below 1"


GROUP_KEYS = ("lr", "weight_decay")
"""What `lr_groups` can set of a group."""


def _are_groups(groups: Any) -> str | None:
    """Regular expressions, each with the learning rate or weight decay of the parameters it matches."""
    for pattern, settings in groups.items():
        try:
            re.compile(pattern)
        except re.error as error:
            return f"has {pattern!r}, which is no regular expression: {error}"
        if not isinstance(settings, dict) or not settings:
            return f"gives {pattern!r} {settings!r}: write a mapping such as {{'lr': 1e-4}}"
        for key, value in settings.items():
            if key not in GROUP_KEYS:
                return f"gives {pattern!r} the unknown key {key!r}: use {' and '.join(GROUP_KEYS)}{did_you_mean(key, GROUP_KEYS)}"
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not (math.isfinite(value) and value >= 0):
                return f"gives {pattern!r} {key}={value!r}: it must be a number, and not negative"
    return None


@dataclass(kw_only=True)
class OwnArguments(MeasuringArguments, NumericsArguments):
    """What only this package has."""

    compat: str = option(
        "none",
        "Whose numbers: none, the right ones; 5, the newest reference's to the letter; 4.37, that generation's.",
        choices=COMPAT,
    )
    ddp_comm_hook: str | None = option(
        None,
        "How gradients travel between processes: fp16 or bf16, rounded; powersgd, as products of small matrices.",
        choices=("fp16", "bf16", "powersgd"),
    )
    chunked_cross_entropy: bool = option(
        False,
        "Causal language models: compute the loss a few tokens at a time, so that logits of all of them are never there.",
    )
    eval_loss_reduction: str = option(
        "auto",
        "Evaluation loss: token, a mean over label tokens; batch_mean, a mean of batch means; auto, token unless compat.",
        choices=("auto", "token", "batch_mean"),
    )
    eval_memory_limit: str | float | None = option(
        None,
        "Memory for the predictions that an evaluation keeps, such as 500MB; beyond it they lie in a file; default 2GB.",
        check=_is_size,
    )
    resume_log_window: bool | None = option(
        None,
        "A resumed run goes on with the loss window of its checkpoint; default True, and False with compat='5' or '4.37'.",
    )
    lr_groups: dict[str, Any] | str | None = option(
        None,
        "Learning rate or weight decay by parameter: regular expressions of names, e.g. {'^encoder': {'lr': 1e-5}}.",
        json=True,
        check=_are_groups,
    )
    optimizer_in_backward: bool = option(
        False,
        "The optimizer acts inside the backward pass, parameter by parameter, so that no two gradients live together.",
    )
    ema_decay: float | None = option(
        None,
        "Evaluate with an exponential moving average of the weights, which keeps this share of itself at each update.",
        check=_is_share,
    )
    max_tokens_per_batch: int | None = option(
        None,
        "Tokens of a training batch of one process, padding included, with train_sampling_strategy='token_budget'.",
        check=positive,
    )
    pack_sequences: bool = option(
        False,
        "Rows of the training batches hold several samples, each seeing itself alone; for causal language models.",
    )
    pack_length: int | None = option(
        None, "Tokens that a row of packed samples holds; default: those of the longest sample.", check=positive
    )
    save_failure: str = option(
        "warn", "When a checkpoint cannot be written: warn, and go on; or raise.", choices=("warn", "raise")
    )
    save_in_background: bool = option(
        False, "Write checkpoints while training goes on, from a copy in the host's memory; one at a time."
    )
    save_on_exception: bool = option(
        False, "An exception in training saves the last complete update before it ends it."
    )
    save_training_args_bin: bool = option(
        False, "Save the arguments as a pickle too, for other programs; it is never read here."
    )
    stop_signals: list[str] = option(
        default_factory=lambda: ["SIGINT", "SIGTERM", "SIGUSR1"],
        help="Signals that stop the run with a checkpoint after the update in progress, where checkpoints are saved.",
    )
    max_time: str | float | None = option(
        None,
        "Wall-clock time after which the run has saved and stopped: seconds, or [days-]hours:minutes:seconds.",
        check=_is_time,
    )


@dataclass(frozen=True)
class SavingOptions:
    """How checkpoints are written and when the run stops for one. The defaults are those of a foreign arguments object.

    Attributes:
        raises: Whether a checkpoint that cannot be written ends the run.
        in_background: Whether files are written while training goes on.
        on_exception: Whether an exception in training saves first.
        pickles_arguments: Whether `training_args.bin` is written.
        stop_signals: Names of the signals that stop the run with a checkpoint.
        max_time_s: Seconds after which it stops with one; None: never.
    """

    raises: bool = False
    in_background: bool = False
    on_exception: bool = False
    pickles_arguments: bool = False
    stop_signals: tuple[str, ...] = ("SIGINT", "SIGTERM", "SIGUSR1")
    max_time_s: float | None = None


def saving_options(args: Any) -> SavingOptions:
    """The options of `args` that say how its checkpoints are written."""
    if not isinstance(args, OwnArguments):
        return SavingOptions()
    return SavingOptions(
        raises=args.save_failure == "raise",
        in_background=args.save_in_background,
        on_exception=args.save_on_exception,
        pickles_arguments=args.save_training_args_bin,
        stop_signals=tuple(args.stop_signals),
        max_time_s=None if args.max_time is None else seconds_of(args.max_time),
    )


@dataclass(frozen=True)
class OptimizerOptions:
    """How the optimizer is built, beyond the reference's options. The defaults are those of a foreign arguments object.

    Attributes:
        groups: Regular expressions of parameters' names, with their learning rate and weight decay.
        in_backward: Whether it acts inside the backward pass.
    """

    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    in_backward: bool = False


def optimizer_options(args: Any) -> OptimizerOptions:
    """The options of `args` that say how its optimizer is built."""
    if not isinstance(args, OwnArguments):
        return OptimizerOptions()
    assert not isinstance(args.lr_groups, str)  # it has been read
    return OptimizerOptions(args.lr_groups or {}, args.optimizer_in_backward)


@dataclass(frozen=True)
class PackingOptions:
    """Whether training samples share rows. The defaults are those of a foreign arguments object.

    Attributes:
        wanted: Whether they do.
        length: Tokens of a row at most; None: as many as the longest sample has.
    """

    wanted: bool = False
    length: int | None = None


def packing_options(args: Any) -> PackingOptions:
    """The options of `args` that say whether samples share rows."""
    return PackingOptions(args.pack_sequences, args.pack_length) if isinstance(args, OwnArguments) else PackingOptions()


def leaves_logits_out(args: Any) -> bool:
    """Whether losses are computed without logits of all tokens; not on arguments that are not ours."""
    return isinstance(args, OwnArguments) and args.chunked_cross_entropy


def ema_decay(args: Any) -> float | None:
    """What an average of the weights keeps of itself at each update; None: none is wanted."""
    return args.ema_decay if isinstance(args, OwnArguments) else None


def evaluation_memory(args: Any) -> int:
    """Bytes that the predictions of an evaluation may take up in memory; the default on arguments that are not ours."""
    limit = args.eval_memory_limit if isinstance(args, OwnArguments) else None
    found = EVAL_MEMORY if limit is None else bytes_of(limit)
    assert found is not None
    return found


def own_options(args: Any) -> Behaviour:
    """What `compat` of `args` stands for, and the single options that win over it.

    On arguments that are not ours, only the reference's names are read.
    """
    states = getattr(args, "restore_callback_states_from_checkpoint", None)
    if not isinstance(args, OwnArguments):
        return _with(BEHAVIOURS["none"], restore_callback_states=states or None)  # there, False is only the default
    return _with(
        BEHAVIOURS[args.compat],
        restore_callback_states=states,
        resume_log_window=args.resume_log_window,
        eval_loss_reduction=None if args.eval_loss_reduction == "auto" else args.eval_loss_reduction,
    )


def _with(behaviour: Behaviour, **chosen: Any) -> Behaviour:
    """The same behaviour, but for what was chosen, that is not None."""
    return replace(behaviour, **{name: value for name, value in chosen.items() if value is not None})
