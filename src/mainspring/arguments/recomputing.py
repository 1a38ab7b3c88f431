"""The keywords of `activation_checkpointing_kwargs`, as the user writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mainspring.errors import Problem, did_you_mean

SELECTION = ("every_n_layers", "offload")
"""Which layers recompute, and where the activations lie that are kept meanwhile."""

PASSED_ON = ("use_reentrant", "context_fn", "determinism_check", "debug", "early_stop", "preserve_rng_state")
"""Keywords of `torch.utils.checkpoint.checkpoint`."""

_SWITCHES = ("offload", "use_reentrant", "debug", "early_stop", "preserve_rng_state")
_NAME = "activation_checkpointing_kwargs"


def problem_of(kwargs: Any) -> Problem | None:
    """The first thing wrong with the keywords, or None.

    Args:
        kwargs: What the option holds; text of JSON that has not been read has nothing wrong yet.
    """
    for name, value in kwargs.items() if isinstance(kwargs, Mapping) else ():
        why = _why_not(name, value)
        if why is not None:
            return Problem(_NAME, {name: value}, f"{why} (also as gradient_checkpointing_kwargs)", _fix(name))
    return None


def _why_not(name: str, value: Any) -> str | None:
    if name not in SELECTION + PASSED_ON:
        return f"{name!r} is neither every_n_layers, nor offload, nor a keyword of torch.utils.checkpoint.checkpoint"
    if name == "every_n_layers" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        return "every_n_layers is no number of layers"
    if name in _SWITCHES and not isinstance(value, bool):
        return f"{name} is a {type(value).__name__}, not bool"
    return None


def _fix(name: str) -> str:
    if name in SELECTION + PASSED_ON:
        return "give 1 or more" if name == "every_n_layers" else "give True or False"
    known = SELECTION + PASSED_ON
    return f"use {', '.join(known)}{did_you_mean(name, known)}"


def known_keywords_of_recomputing(a: Any) -> Problem | None:
    """A keyword that nobody knows would fail in the middle of the first forward pass."""
    return problem_of(a.activation_checkpointing_kwargs)
