"""Older options that became part of another one: how each is put there, and how it is read back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from mainspring.arguments.masking import shown
from mainspring.arguments.normalise import read
from mainspring.arguments.optimizer import default_optimizer
from mainspring.arguments.typed import typed
from mainspring.errors import Problem, printed

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments

Options = dict[str, Any]
"""What is given together, in newer spellings and not read yet. A translation changes it."""

Settled = Mapping[str, Any]
"""The options of finished arguments, where an older one is set on them; empty at construction."""

NOTHING_SETTLED: Settled = MappingProxyType({})


class Translation(NamedTuple):
    """What became of an older option.

    Attributes:
        option: The option that it became part of.
        now: How that is written.
        kind: The annotation of its values.
        put: Puts a value among the options, or says why it cannot be there.
        read: Reads it off finished arguments.
    """

    option: str
    now: str
    kind: Any
    put: Callable[[Any, Options, Settled], Problem | None]
    read: Callable[[TrainingArguments], Any]


def given_too(older: str, value: Any, newer: str, other: Any) -> Problem:
    """The complaint about two spellings that contradict each other."""
    why = f"{newer}={printed(shown(newer, other))} was given too"
    return Problem(older, shown(older, value), why, f"give only {newer}")


# ---- schedule and optimizer ----

_WHOLE_RUN = math.nextafter(1.0, 0.0)
"""The largest share: 1 itself would be one update."""


def _put_warmup_ratio(share: float, options: Options, settled: Settled) -> Problem | None:
    if not 0 <= share <= 1:
        return Problem("warmup_ratio", share, "is no share of the run", "give a number from 0 to 1")
    given = options.get("warmup_steps")
    steps, problem = typed("warmup_steps", 0 if given is None else given, frozenset({float}))
    if problem is None and steps == 0:
        options["warmup_steps"] = min(share, _WHOLE_RUN)
    return None


def _read_warmup_ratio(args: TrainingArguments) -> float:
    if args.warmup_steps == _WHOLE_RUN:
        return 1.0
    return args.warmup_steps if args.warmup_steps < 1 else 0.0


def _choice(older: str, newer: str, choice: str, otherwise: str) -> Translation:
    """A truth value that stands for one choice of a newer option; set to False later on, for another one."""

    def put(value: bool, options: Options, settled: Settled) -> Problem | None:
        given = options.get(newer)
        if value and given is not None and not (isinstance(given, str) and given == choice):
            return given_too(older, value, newer, given)
        if value:
            options[newer] = choice
        elif settled.get(newer) == choice:
            options.setdefault(newer, otherwise)
        return None

    return Translation(newer, f"{newer}={choice!r}", bool, put, lambda args: getattr(args, newer) == choice)


# ---- metrics and logs ----


def _put_include_inputs(value: bool, options: Options, settled: Settled) -> None:
    names = options.get("include_for_metrics", settled.get("include_for_metrics"))
    names = [] if names is None else names
    if not isinstance(names, (list, tuple)):
        return  # and it is told that this is no list
    if value and "inputs" not in names:
        options["include_for_metrics"] = [*names, "inputs"]
    elif not value and settled:
        options["include_for_metrics"] = [name for name in names if name != "inputs"]


def _put_tokens_per_second(value: bool, options: Options, settled: Settled) -> None:
    count = options.get("include_num_input_tokens_seen", settled.get("include_num_input_tokens_seen"))
    if value and (count is None or count is False or (isinstance(count, str) and count == "no")):
        options["include_num_input_tokens_seen"] = "all"


def _put_tpu_debug(value: bool, options: Options, settled: Settled) -> None:
    aids = options.get("debug", settled.get("debug", ""))
    if value and isinstance(aids, (str, list, tuple)):
        options["debug"] = [*(aids.split() if isinstance(aids, str) else aids), "tpu_metrics_debug"]


# ---- settings within an option ----


def settings_of(option: str, options: Options, settled: Settled) -> tuple[dict[str, Any], Problem | None]:
    """What an option that holds settings says, be it a mapping, JSON text or a file, or an object of settings."""
    given = options.get(option, settled.get(option))
    if given is None:
        return {}, None
    given = given.to_dict() if callable(getattr(given, "to_dict", None)) else given
    settings, problem = read(option, given, frozenset({dict}), None, True)
    return ({}, problem) if problem is not None else (settings, None)


def _setting(
    older: str, option: str, kind: Any, unset: Any, value_of: Callable[[Any], Any] = lambda value: value
) -> Translation:
    """One setting among those of a newer option. Its older default says nothing, unless it is set later on."""
    key = older.removeprefix("fsdp_")

    def put(value: Any, options: Options, settled: Settled) -> Problem | None:
        if value in (unset, None) and not settled:
            return None
        settings, problem = settings_of(option, options, settled)
        if problem is not None:
            return problem
        other = settings.get(key, settings.get(older))
        if option in options and other not in (None, unset) and other != value_of(value):
            return given_too(older, value, option, options[option])
        options[option] = {**settings, key: value_of(value)}
        return None

    def read_back(args: TrainingArguments) -> Any:
        settings = getattr(args, option)
        found = settings.get(key, unset) if isinstance(settings, dict) else getattr(settings, key, unset)
        return found[0] if isinstance(found, list) and len(found) == 1 else found

    return Translation(option, f"{option}={{{key!r}: ...}}", kind, put, read_back)


# ---- the Hub ----


def _put_organization(value: str | None, options: Options, settled: Settled) -> Problem | None:
    given = options.get("hub_model_id")
    if not value:
        return None
    if given is None:
        named = (settled.get("hub_model_id"), options.get("output_dir"), settled.get("output_dir"))
        folder = next((name for name in named if isinstance(name, (str, os.PathLike))), "trainer_output")
        options["hub_model_id"] = f"{value}/{PurePath(os.fsdecode(folder)).name}"
    elif isinstance(given, str) and not given.startswith(f"{value}/"):
        return given_too("push_to_hub_organization", value, "hub_model_id", given)
    return None


def with_organization(given: Options) -> Options:
    """The same with an organization before the older name of a repository, where both are given."""
    organization, name = given.get("push_to_hub_organization"), given.get("push_to_hub_model_id")
    if not (isinstance(organization, str) and organization and isinstance(name, str)):
        return given
    return {**given, "push_to_hub_model_id": f"{organization}/{name}"}


TRANSLATED: dict[str, Translation] = {
    "warmup_ratio": Translation(
        "warmup_steps", "warmup_steps (below 1, a share)", float, _put_warmup_ratio, _read_warmup_ratio
    ),
    "group_by_length": _choice("group_by_length", "train_sampling_strategy", "group_by_length", "random"),
    "adafactor": _choice("adafactor", "optim", "adafactor", default_optimizer().value),
    "include_inputs_for_metrics": Translation(
        "include_for_metrics",
        "include_for_metrics=['inputs']",
        bool,
        _put_include_inputs,
        lambda args: "inputs" in args.include_for_metrics,
    ),
    "include_tokens_per_second": Translation(
        "include_num_input_tokens_seen",
        "include_num_input_tokens_seen",
        bool | None,
        _put_tokens_per_second,
        lambda args: args.include_num_input_tokens_seen != "no",
    ),
    "tpu_metrics_debug": Translation(
        "debug", "debug='tpu_metrics_debug'", bool, _put_tpu_debug, lambda args: "tpu_metrics_debug" in args.debug
    ),
    "split_batches": _setting("split_batches", "accelerator_config", bool | None, False),
    "dispatch_batches": _setting("dispatch_batches", "accelerator_config", bool | None, None),
    "fsdp_min_num_params": _setting("fsdp_min_num_params", "fsdp_config", int, 0),
    "fsdp_transformer_layer_cls_to_wrap": _setting(
        "fsdp_transformer_layer_cls_to_wrap", "fsdp_config", str | None, None, lambda name: [name]
    ),
    "push_to_hub_organization": Translation(
        "hub_model_id",
        "part of hub_model_id='organization/name'",
        str | None,
        _put_organization,
        lambda args: (args.hub_model_id or "").rpartition("/")[0] or None,
    ),
}
"""Older options that became part of another one."""
