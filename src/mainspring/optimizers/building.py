"""From a name in the options to an optimizer of the model's parameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mainspring.arguments.own import own_options
from mainspring.optimizers.in_backward import into_backward
from mainspring.optimizers.plain_states import keep_plain
from mainspring.optimizers.request import OptimizerRequest, OptimizerSpec, parse_optim_args
from mainspring.optimizers.table import LAYERWISE, OPTIMIZERS


def optimizer_class_and_kwargs(args: Any, model: nn.Module | None = None) -> OptimizerSpec:
    """The optimizer class that `args.optim` names, and the keyword arguments to build it with (all but the parameters).

    Args:
        args: Has `optim`, `optim_args`, `learning_rate`, `adam_beta1`, `adam_beta2`, `adam_epsilon`, `weight_decay`.
        model: The model to be trained; only builders that choose among its modules need it.

    Raises:
        ValueError: Unknown name, or an option in `optim_args` that this optimizer does not have or cannot read.
    """
    name = str(getattr(args.optim, "value", args.optim))
    request = OptimizerRequest(
        name=name,
        learning_rate=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        epsilon=args.adam_epsilon,
        options=parse_optim_args(args.optim_args),
        model=model,
        weight_decay=args.weight_decay,
        warmup_steps=getattr(args, "warmup_steps", 0),
        targets=getattr(args, "optim_target_modules", None),
        max_grad_norm=getattr(args, "max_grad_norm", None),
        complete=own_options(args).complete_optimizers,
    )
    build = OPTIMIZERS[name]
    with OPTIMIZERS.needing(name):
        cls, kwargs = build(request)
    if kwargs.get("weight_decay", args.weight_decay) != args.weight_decay:
        warnings.warn(
            f"optim_args: weight_decay={kwargs['weight_decay']} has no effect, because parameter groups carry "
            f"weight_decay={args.weight_decay}; set the option weight_decay instead",
            stacklevel=2,
        )
    return into_backward(cls, kwargs) if name.endswith(LAYERWISE) else (cls, kwargs)


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
    _keep_embeddings(cls, given, model)
    return keep_plain(cls(parameters, **given))


def _keep_embeddings(cls: Any, given: dict[str, Any], model: nn.Module) -> None:
    """The 8-bit optimizers of bitsandbytes get 32-bit states for embeddings."""
    stepped = given.get("optimizer", cls)
    if not str(getattr(stepped, "__module__", "")).startswith("bitsandbytes") or given.get("optim_bits") != 8:
        return
    from mainspring.optimizers import bnb

    if stepped is cls:
        bnb.keep_embeddings_in_32_bits(model)
    else:
        given["optimizer"] = bnb.in_32_bits_for_embeddings(stepped, model)


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
