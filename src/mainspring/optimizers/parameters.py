"""The parameters of a model in groups: what is decayed, and what has a learning rate of its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from mainspring.errors import OptionError, Problem, did_you_mean

NO_DECAY_PATTERNS = ("bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Patterns of the lower-cased names of parameters that are biases or belong to a normalisation."""


def get_parameter_names(
    model: nn.Module,
    forbidden_layer_types: Sequence[type[nn.Module]],
    forbidden_layer_names: Sequence[str] | None = None,
) -> list[str]:
    """The names of the model's parameters, without those of some kinds of layers and those that match a pattern.

    Args:
        model: Its own kind is not looked at, only its descendants'.
        forbidden_layer_types: Modules of these classes, and everything inside them, are left out.
        forbidden_layer_names: Regular expressions. A parameter is left out if one is found in its lower-cased name, be
            it the full dotted name or that from one of its parent modules on (so that `^` can stand for any level).

    Returns:
        Dotted names, a module's children before its own; shared parameters under each of their names.
    """
    names = _names(model, tuple(forbidden_layer_types))
    if not forbidden_layer_names:
        return list(names)
    patterns = [re.compile(pattern) for pattern in forbidden_layer_names]
    return [name for name in names if not any(p.search(tail) for tail in _tails(name.lower()) for p in patterns)]


def _names(module: nn.Module, forbidden: tuple[type[nn.Module], ...]) -> Iterator[str]:
    for child_name, child in module.named_children():
        if not isinstance(child, forbidden):
            for name in _names(child, forbidden):
                yield f"{child_name}.{name}"
    yield from module._parameters


def _tails(name: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


def decay_parameter_names(model: nn.Module, patterns: Sequence[str] = NO_DECAY_PATTERNS) -> list[str]:
    """The names of the parameters that weight decay applies to: all but biases and those of normalisations."""
    return get_parameter_names(model, [nn.LayerNorm], patterns)


NORMALISATIONS_OF_4_37 = frozenset(
    {
        "IdeficsRMSNorm",
        "LlamaRMSNorm",
        "LongT5LayerNorm",
        "MegaSequenceNorm",
        "Pix2StructLayerNorm",
        "Pop2PianoLayerNorm",
        "SwitchTransformersLayerNorm",
        "T5LayerNorm",
    }
)
"""Classes of transformers models that its version 4.37 knew as normalisations, beside `nn.LayerNorm`."""


def decay_parameter_names_of_4_37(model: nn.Module) -> list[str]:
    """The names of the parameters that weight decay applied to in version 4.37 of transformers.

    A normalisation of another class, such as `MistralRMSNorm`, is decayed; what has "bias" anywhere in its name is not.
    """
    kinds = {type(module) for module in model.modules() if _is_normalisation_of_4_37(type(module))}
    return [name for name in get_parameter_names(model, [nn.LayerNorm, *kinds]) if "bias" not in name]


def _is_normalisation_of_4_37(kind: type) -> bool:
    return kind.__name__ in NORMALISATIONS_OF_4_37 and kind.__module__.startswith("transformers.")


Groups = Mapping[str, Mapping[str, float]]
"""Regular expressions of parameters' names, each with `lr`, `weight_decay` or both."""


def parameter_groups(
    model: nn.Module, decay_names: Collection[str], weight_decay: float, own: Groups | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters in groups: with weight decay, and without. Either may be empty.

    Args:
        model: Whose parameters they are.
        decay_names: The names of those that are decayed.
        weight_decay: How much.
        own: What some have of their own; each expression that is found in a name makes a group more for those that are
            decayed, and one for those that are not. A parameter goes to the first that is found in its name.

    Raises:
        ValueError: Nothing in the model is trainable.
        OptionError: An expression is found in no name, or only in those that went to one before it.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            f"model: none of the {sum(1 for _ in model.parameters())} parameters of {type(model).__name__} is "
            "trainable; set requires_grad_(True) on those to train"
        )
    decayed = frozenset(decay_names)
    own = own or {}
    pattern_of = {name: next((pattern for pattern in own if re.search(pattern, name)), None) for name, _ in trainable}
    groups = []
    for pattern in (None, *own):
        settings = dict(own[pattern]) if pattern is not None else {}
        members = [(name, parameter) for name, parameter in trainable if pattern_of[name] == pattern]
        if pattern is not None and not members:
            raise OptionError([_idle_pattern(pattern, [name for name, _ in trainable])])
        halves = (
            {"params": [p for name, p in members if name in decayed], "weight_decay": weight_decay, **settings},
            {"params": [p for name, p in members if name not in decayed], **settings, "weight_decay": 0.0},
        )
        groups += [half for half in halves if half["params"] or pattern is None]
    return groups


def _idle_pattern(pattern: str, names: list[str]) -> Problem:
    found = [name for name in names if re.search(pattern, name)]
    if found:
        why = f"all that it matches, such as {found[0]}, went to an expression before it"
        return Problem("lr_groups", pattern, why, "put the narrower expression first, or leave this one out")
    why = "it is found in no name of a trainable parameter"
    words = {part for name in names for part in name.split(".")}
    return Problem(
        "lr_groups", pattern, why, f"the names are: {', '.join(names[:4])}, ...{did_you_mean(pattern, words)}"
    )
