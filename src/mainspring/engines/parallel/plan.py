"""The plan of tensor parallelism: which modules of a model are divided, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.distributed.tensor.parallel import ParallelStyle

from mainspring.engines.parallel.styles import STYLES
from mainspring.errors import NotAvailableError, OptionError, Problem, did_you_mean
from mainspring.utils.logging import get_logger

logger = get_logger(__name__)

Plan = dict[str, Any]
"""Names of modules, `*` standing for any one part of a name, with a name in `STYLES` or a `ParallelStyle` of torch's."""


def plan_of(model: nn.Module, size: int) -> Plan:
    """The plan that a model brings: its attribute `tp_plan` or `_tp_plan`, else those of the modules in it.

    transformers' models have one where the library knows how to divide them.

    Args:
        model: The model.
        size: Among how many processes its layers are to be divided.

    Raises:
        OptionError: There is none.
    """
    found = _own_plan(model) or dict(_plans_below(model, ""))
    if not found:
        why = f"{type(model).__name__} has no plan that says which of its layers are divided, and how"
        fix = (
            'give it one, such as model.tp_plan = {"layers.*.up": "colwise", "layers.*.down": "rowwise"}, '
            "or leave tp_size out"
        )
        raise OptionError([Problem("parallelism_config", {"tp_size": size}, why, fix)])
    return found


def _own_plan(module: nn.Module) -> Plan:
    for name in ("tp_plan", "_tp_plan"):
        plan = getattr(module, name, None)
        if isinstance(plan, Mapping) and plan:
            return dict(plan)
    return {}


def _plans_below(module: nn.Module, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, child in module.named_children():
        own = _own_plan(child)
        if own:
            yield from ((f"{prefix}{name}.{key}", style) for key, style in own.items())
        else:
            yield from _plans_below(child, f"{prefix}{name}.")


def expand(plan: Plan, model: nn.Module) -> dict[str, tuple[Any, ParallelStyle]]:
    """`(what the plan says, the style)` of every module that the plan names.

    Raises:
        NotAvailableError: A style that is not known, of a module that is there.
        OptionError: The plan names no module of this model at all.
    """
    modules = [name for name, _ in model.named_modules() if name]
    tensors = [name for name, _ in model.named_parameters()]
    found: dict[str, tuple[Any, ParallelStyle]] = {}
    problems: list[Problem] = []
    unused: list[str] = []
    for pattern, style in plan.items():
        named = [name for name in modules if _matches(name, pattern)]
        if not named and not any(_matches(name, pattern) for name in tensors):
            unused.append(pattern)
        elif (problem := _unknown(pattern, style, bool(named))) is not None:
            problems.append(problem)
        else:
            found.update(
                {name: (style, style if isinstance(style, ParallelStyle) else STYLES[style]()) for name in named}
            )
    if problems:
        raise NotAvailableError(problems)
    _complain_of(unused, found, model)
    return found


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))


def _unknown(pattern: str, style: Any, is_module: bool) -> Problem | None:
    if isinstance(style, ParallelStyle) and is_module:
        return None
    if not is_module:
        why = "it names a parameter, and only whole modules are divided"
    elif not isinstance(style, str) or style not in STYLES:
        why = f"there is no such style{did_you_mean(str(style), STYLES)}: known are {', '.join(STYLES)}"
    else:
        return None
    return Problem(
        "tp_plan", {pattern: style}, why, "give the model another plan (model.tp_plan = {...}), or leave tp_size out"
    )


def _complain_of(unused: list[str], found: Mapping[str, Any], model: nn.Module) -> None:
    if not unused:
        return
    if not found:
        why = f"none of the names is a module of {type(model).__name__}"
        raise OptionError([Problem("tp_plan", unused, why, "name its modules, as model.named_modules() does")])
    logger.warning_once(
        "the plan of tensor parallelism names what %s does not have: %s", type(model).__name__, ", ".join(unused)
    )
