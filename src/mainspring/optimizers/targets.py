"""`optim_target_modules`: the linear layers whose gradients a low-rank optimizer projects."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from mainspring.errors import OptionError, Problem, did_you_mean
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

ALL_LINEAR = "all-linear"
"""Stands for every linear layer."""

Targets = str | Sequence[str]


def target_layers(model: nn.Module, targets: Targets | None, optimizer: str) -> dict[str, nn.Linear]:
    """The linear layers that `targets` names, by their dotted names.

    Args:
        model: Where they are looked for.
        targets: `"all-linear"`; a regular expression that a whole name has to match; or a list, of which each entry is
            found somewhere in a name or matches it as a whole.
        optimizer: Who asks, for the messages.

    Raises:
        OptionError: None is given, one is no regular expression, or no linear layer matches.
    """
    if not targets:
        why = f"{optimizer} has to be told which linear layers it projects the gradients of"
        fix = f"give {ALL_LINEAR!r}, a regular expression, or a list such as ['attn', 'mlp']"
        raise OptionError([Problem("optim_target_modules", targets, why, fix)])
    if isinstance(targets, str) and targets.replace("_", "-") == ALL_LINEAR:
        targets = ALL_LINEAR
    patterns = _patterns(targets)
    named = dict(model.named_modules())
    linear = {name: module for name, module in named.items() if isinstance(module, nn.Linear)}
    if targets == ALL_LINEAR:
        found = linear
    else:
        found = {name: module for name, module in linear.items() if _matches(name, targets, patterns)}
        _tell_of_others(named, targets)
    if not found:
        words = {part for name in linear for part in name.split(".")}
        wanted = targets if isinstance(targets, str) else targets[0]
        why = f"no linear layer of {type(model).__name__} matches"
        fix = f"name some of: {', '.join(list(linear)[:6])}, ...{did_you_mean(wanted, words)}"
        raise OptionError([Problem("optim_target_modules", targets, why, fix)])
    return found


def _patterns(targets: Targets) -> list[re.Pattern[str]]:
    try:
        return [re.compile(text) for text in ([targets] if isinstance(targets, str) else targets)]
    except re.error as error:
        why, fix = f"{error.pattern!r} is no regular expression: {error}", "write one, or the name of a layer"
        raise OptionError([Problem("optim_target_modules", targets, why, fix)]) from error


def _matches(name: str, targets: Targets, patterns: list[re.Pattern[str]]) -> bool:
    if not isinstance(targets, str) and any(target in name for target in targets):
        return True
    return any(pattern.fullmatch(name) for pattern in patterns)


def _tell_of_others(named: dict[str, nn.Module], targets: Targets) -> None:
    """Say once which layers with weights of their own are named, but not linear: a block that holds layers is none."""
    entries = [] if isinstance(targets, str) else targets
    others = [
        name
        for name, module in named.items()
        if not isinstance(module, nn.Linear) and module._parameters and any(entry in name for entry in entries)
    ]
    if others:
        logger.warning("optim_target_modules: only linear layers are projected, not %s", ", ".join(others[:5]))
