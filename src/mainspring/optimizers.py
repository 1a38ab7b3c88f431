"""Optimizers by name, and the parameters that weight decay applies to.

To add one: a builder that turns an `OptimizerRequest` into a class and its keyword arguments, and a row in `OPTIMIZERS`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from mainspring.arguments.option import pairs, parts_of
from mainspring.errors import NotAvailableError, Problem, did_you_mean
from mainspring.names import OPTIMIZER_NAMES
from mainspring.registry import Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw_torch": "mainspring.optimizers:adamw",
        "adamw_torch_fused": "mainspring.optimizers:adamw_fused",
        "adafactor": "mainspring.optimizers:adafactor",
        "sgd": "mainspring.optimizers:sgd",
        "adagrad": "mainspring.optimizers:adagrad",
        "rmsprop": "mainspring.optimizers:rmsprop",
    },
)

OptimizerSpec: TypeAlias = tuple[type[Optimizer], dict[str, Any]]


@dataclass(frozen=True)
class OptimizerRequest:
    """What a builder is told.

    Attributes:
        name: The name it was asked for under, for error messages.
        learning_rate: Peak learning rate.
        betas: Decay rates of Adam's first and second moment.
        epsilon: Adam's term for numerical stability.
        options: The parsed `optim_args`, values still text.
        model: The model to be trained, for builders that choose among its modules.
    """

    name: str
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    options: Mapping[str, str] = field(default_factory=dict)
    model: nn.Module | None = None


def optimizer_class_and_kwargs(args: Any, model: nn.Module | None = None) -> OptimizerSpec:
    """The optimizer class that `args.optim` names, and the keyword arguments to build it with (all but the parameters).

    Args:
        args: Has `optim`, `optim_args`, `learning_rate`, `adam_beta1`, `adam_beta2`, `adam_epsilon`, `weight_decay`.
        model: The model to be trained; only builders that choose among its modules need it.

    Raises:
        ValueError: Unknown name, or an option in `optim_args` that this optimizer does not have or cannot read.
    """
    name = str(getattr(args.optim, "value", args.optim))
    if name in OPTIMIZER_NAMES and name not in OPTIMIZERS:
        choices = ", ".join(OPTIMIZERS.names())
        raise NotAvailableError([Problem("optim", name, "not available yet", f"use one of: {choices}")])
    request = OptimizerRequest(
        name=name,
        learning_rate=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        epsilon=args.adam_epsilon,
        options=parse_optim_args(args.optim_args),
        model=model,
    )
    cls, kwargs = OPTIMIZERS[name](request)
    if kwargs.get("weight_decay", args.weight_decay) != args.weight_decay:
        warnings.warn(
            f"optim_args: weight_decay={kwargs['weight_decay']} has no effect, because parameter groups carry "
            f"weight_decay={args.weight_decay}; set the option weight_decay instead",
            stacklevel=2,
        )
    return cls, kwargs


# optim_args -------------------------------------------------------------------------------------------------------


def parse_optim_args(text: str | None) -> dict[str, str]:
    """Read `"key=value,key=value"`; spaces do not count, values stay text.

    Raises:
        ValueError: A part without `=`, or a key that is given twice.
    """
    if complaint := pairs(text or ""):
        raise ValueError(f"optim_args={text!r}: {complaint}; write 'key=value,key=value'")
    return dict(part.split("=", 1) for part in parts_of(text or ""))


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "t", "yes", "y", "on"):
        return True
    if text.lower() in ("0", "false", "f", "no", "n", "off"):
        return False
    raise ValueError("not a boolean")


def read_options(request: OptimizerRequest, **types: Callable[[str], Any]) -> dict[str, Any]:
    """The request's options converted to their types; only those that were given.

    Args:
        request: Holds the text of the options.
        **types: Every option that the optimizer has, with what converts its text.

    Raises:
        ValueError: An unknown option, or text that does not convert.
    """
    values = {}
    for key, text in request.options.items():
        if key not in types:
            has = f"has {', '.join(types)}" if types else "has no options here"
            raise ValueError(
                f"optim_args: {key!r} is no option of {request.name!r}, which {has}{did_you_mean(key, types)}"
            )
        try:
            values[key] = types[key](text)
        except ValueError:
            kind = types[key].__name__.strip("_")
            raise ValueError(f"optim_args: {key}={text!r} is not a {kind}; write one") from None
    return values


# Builders ---------------------------------------------------------------------------------------------------------


def adamw(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101)."""
    read_options(request)
    return torch.optim.AdamW, {"lr": request.learning_rate, "betas": request.betas, "eps": request.epsilon}


def adamw_fused(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.AdamW` that updates all parameters in one kernel."""
    cls, kwargs = adamw(request)
    return cls, {**kwargs, "fused": True}


def adafactor(request: OptimizerRequest) -> OptimizerSpec:
    """`mainspring.adafactor.Adafactor` with the learning rate of the schedule instead of its own."""
    from mainspring.adafactor import Adafactor

    read_options(request)
    return Adafactor, {"lr": request.learning_rate, "scale_parameter": False, "relative_step": False}


def sgd(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.SGD`."""
    options = read_options(request, momentum=float, dampening=float, weight_decay=float, nesterov=_boolean)
    return torch.optim.SGD, {"lr": request.learning_rate, **options}


def adagrad(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.Adagrad`."""
    options = read_options(request, lr_decay=float, weight_decay=float, eps=float)
    return torch.optim.Adagrad, {"lr": request.learning_rate, **options}


def rmsprop(request: OptimizerRequest) -> OptimizerSpec:
    """`torch.optim.RMSprop`."""
    options = read_options(request, momentum=float, alpha=float, eps=float, weight_decay=float, centered=_boolean)
    return torch.optim.RMSprop, {"lr": request.learning_rate, **options}


# Parameters -------------------------------------------------------------------------------------------------------

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


def parameter_groups(model: nn.Module, decay_names: Collection[str], weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: with weight decay, and without. Either may be empty.

    Raises:
        ValueError: Nothing in the model is trainable.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            f"model: none of the {sum(1 for _ in model.parameters())} parameters of {type(model).__name__} is "
            "trainable; set requires_grad_(True) on those to train"
        )
    decayed = frozenset(decay_names)
    return [
        {"params": [p for name, p in trainable if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if name not in decayed], "weight_decay": 0.0},
    ]


# Building ---------------------------------------------------------------------------------------------------------


def is_optimizer_factory(candidate: object) -> bool:
    """Whether this is no optimizer class but something that, called without arguments, gives a maker of optimizers."""
    return not (isinstance(candidate, type) and issubclass(candidate, Optimizer))


def build_optimizer(
    cls: Any, kwargs: Mapping[str, Any], model: nn.Module, groups: Sequence[Mapping[str, Any]]
) -> Optimizer:
    """Build the optimizer of a model.

    Args:
        cls: An optimizer class, or a factory: `factory()(model, **kwargs)` returns an optimizer.
        kwargs: Its keyword arguments. One of `params`, `model` and `optimizer_dict` among them takes the place of the
            groups; the mapping itself is left as it was.
        model: What a factory is given.
        groups: What a class is given: the parameters in groups.

    Raises:
        TypeError: A factory that is not callable, or that returned something else than an optimizer.
    """
    if is_optimizer_factory(cls):
        return _from_factory(cls, kwargs, model)
    given = dict(kwargs)
    parameters: Any = list(groups)
    for name in ("params", "model", "optimizer_dict"):
        parameters = given.pop(name, parameters)
    optimizer: Optimizer = cls(parameters, **given)
    return optimizer


def _from_factory(factory: Any, kwargs: Mapping[str, Any], model: nn.Module) -> Optimizer:
    if not callable(factory):
        raise TypeError(
            f"optimizer_cls_and_kwargs: {factory!r} is neither an optimizer class nor a factory of optimizers"
        )
    optimizer = factory()(model, **kwargs)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer_cls_and_kwargs: the factory {factory!r} returned a {type(optimizer).__name__}; "
            "return a torch.optim.Optimizer"
        )
    return optimizer
