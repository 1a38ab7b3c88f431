"""Which modules are units: gathered before they run, and freed after it, each by itself."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator

from torch import nn

from mainspring.arguments.fsdp_config import FSDPConfig
from mainspring.errors import OptionError, Problem, did_you_mean
from mainspring.model import base_of_peft


def units_of(model: nn.Module, config: FSDPConfig) -> list[nn.Module]:
    """The units inside a model, inner ones first. The model itself, with what is left over, is always one more.

    A module is left to the one around it where it shares a parameter with modules outside of it, as tied embeddings do:
    in two units, the parameter would be two.

    Raises:
        OptionError: A layer that was named is not in the model.
    """
    if config.auto_wrap_policy == "NO_WRAP":
        return []
    if config.auto_wrap_policy == "SIZE_BASED_WRAP":
        return list(_large(model, max(config.min_num_params, 1)))
    check_layer_names(model, config)
    names = _layer_names(model, config.transformer_layer_cls_to_wrap)
    alone = _Sharing(model).stands_alone
    return [module for module in _inner_first(model) if type(module).__name__ in names and alone(module)]


# ---- by name ----


def check_layer_names(model: nn.Module, config: FSDPConfig) -> None:
    """Refuse names of layers that are not in the model.

    Raises:
        OptionError: The name and those that there are.
    """
    if config.auto_wrap_policy != "TRANSFORMER_BASED_WRAP":
        return
    there = _kinds(model)
    for name in config.transformer_layer_cls_to_wrap:
        if name not in there:
            why = f"there is no {name} in {type(model).__name__}"
            fix = f"name one of {', '.join(sorted(there))}{did_you_mean(name, sorted(there))}"
            given = {"transformer_layer_cls_to_wrap": [*config.transformer_layer_cls_to_wrap]}
            raise OptionError([Problem("fsdp_config", given, why, fix)])


def _layer_names(model: nn.Module, named: Iterable[str]) -> frozenset[str]:
    """The class names of the layers that were named, or that the model names."""
    names = frozenset(named or _of_model(model)) & _kinds(model)
    if not names:
        warnings.warn(
            f"fsdp: {type(model).__name__} does not say what its layers are, so all of it is gathered at once; give "
            "fsdp_config={'transformer_layer_cls_to_wrap': [...]} or {'min_num_params': ...}",
            UserWarning,
            stacklevel=2,
        )
    return names


def _kinds(model: nn.Module) -> frozenset[str]:
    return frozenset(type(module).__name__ for module in model.modules() if module is not model)


def _of_model(model: nn.Module) -> list[str]:
    return list(getattr(base_of_peft(model), "_no_split_modules", None) or ())


# ---- by size ----


def _large(model: nn.Module, least: int) -> Iterator[nn.Module]:
    """The smallest modules with `least` parameters that are not in a unit already."""
    alone = _Sharing(model).stands_alone
    covered: set[int] = set()
    for module in _inner_first(model):
        left = {id(p): p.numel() for p in module.parameters() if id(p) not in covered}
        if sum(left.values()) >= least and _is_called(module) and alone(module):
            covered |= set(left)
            yield module


def _is_called(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict))


# ---- both ----


def _inner_first(model: nn.Module) -> Iterator[nn.Module]:
    """All modules below the model, each after those in it, and once."""
    # What is inside attention of torch's is never called: its weights are handed to a function.
    hidden = {id(inner) for m in model.modules() if isinstance(m, nn.MultiheadAttention) for inner in m.children()}
    return (module for module in reversed(list(model.modules())[1:]) if id(module) not in hidden)


class _Sharing:
    """Which modules have parameters that no module outside of them has."""

    def __init__(self, model: nn.Module) -> None:
        self._owners: dict[int, list[nn.Module]] = defaultdict(list)
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                self._owners[id(parameter)].append(module)

    def stands_alone(self, module: nn.Module) -> bool:
        """Whether a module has parameters, and all their owners are in it."""
        inside = set(module.modules())
        parameters = list(module.parameters())
        return bool(parameters) and all(owner in inside for p in parameters for owner in self._owners[id(p)])
