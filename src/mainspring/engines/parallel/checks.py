"""What tensor parallelism cannot divide: heads and widths that leave a remainder, and layers of unknown kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from mainspring.arguments.parallel_sizes import ParallelSizes
from mainspring.checkpoint.adapters import has_adapters
from mainspring.errors import NotAvailableError, OptionError, Problem

_HEADS = ("num_attention_heads", "num_key_value_heads")
_WIDTHS = {"colwise": ("out_features", "embedding_dim"), "rowwise": ("in_features",)}
"""Widths of which each process takes an equal part, so that what follows sees whole heads."""


def check_sizes(sizes: ParallelSizes, device: str, *, scaled: bool) -> None:
    """Refuse what these processes cannot do.

    Args:
        sizes: How the processes share the run.
        device: Their kind of device.
        scaled: Whether losses are scaled, as in fp16.

    Raises:
        OptionError: Naming all of it.
    """
    if sizes.sp_size > 1:
        why = f"sp_backend={sizes.sp_backend!r} is DeepSpeed's division of sequences (Ulysses), which is not available yet"
        fix = 'use cp_size on GPUs, or tp_size with a plan of "sequence_parallel" modules'
        raise NotAvailableError([Problem("parallelism_config", {"sp_size": sizes.sp_size}, why, fix)])
    if sizes.tp_size > 1 and (sizes.tp_handler or {}).get("enable_async_tp"):
        given = {"tp_handler": {"enable_async_tp": True}}
        why = "layers wait for what they send and receive: asynchronous tensor parallelism is not available yet"
        raise NotAvailableError([Problem("parallelism_config", given, why, "leave it out")])
    problems = []
    if sizes.cp_size > 1 and device == "cpu":
        why = "torch's ring attention has no kernel for the CPU"
        problems.append(Problem("parallelism_config", {"cp_size": sizes.cp_size}, why, "use GPUs, or leave it out"))
    if scaled and sizes.tp_size > 1:
        why = "losses are not scaled with divided layers: the processes would not agree on which steps to leave out"
        problems.append(Problem("fp16", True, why, "use bf16=True"))
    if problems:
        raise OptionError(problems)


def check_adapters(model: nn.Module, size: int) -> None:
    """Refuse adapters, also in a model that was divided when it was loaded.

    Raises:
        OptionError: There are some.
    """
    if has_adapters(model):
        why = "a plan divides the layers of a model, and not the adapters in them"
        fix = "use fsdp=True, which shards adapters too, or leave tp_size out"
        raise OptionError([Problem("parallelism_config", {"tp_size": size}, why, fix)])


def check_divisible(model: nn.Module, plan: Mapping[str, Any], size: int) -> None:
    """Refuse a model that does not fall into `size` equal parts.

    Args:
        model: The model.
        plan: What the plan says of each module, by its name.
        size: Into how many parts.

    Raises:
        OptionError: Naming all that leaves a remainder.
    """
    problems = [*_uneven_heads(model, plan, size), *_uneven_layers(model, plan, size)]
    if problems:
        raise OptionError(problems)


def _uneven_heads(model: nn.Module, plan: Mapping[str, Any], size: int) -> Iterator[Problem]:
    config = getattr(model, "config", None)
    if config is None or "colwise" not in plan.values():
        return
    text = config.get_text_config() if callable(getattr(config, "get_text_config", None)) else config
    for name in _HEADS:
        heads = getattr(text, name, None)
        if isinstance(heads, int) and heads % size:
            why = f"the model has {name}={heads}, which do not fall into {size} equal parts"
            yield Problem("parallelism_config", {"tp_size": size}, why, f"choose a divisor of {heads}")


def _uneven_layers(model: nn.Module, plan: Mapping[str, Any], size: int) -> Iterator[Problem]:
    told = set()
    for name, style in plan.items():
        if not isinstance(style, str):
            continue  # a style of torch's says by itself what it can do
        module = model.get_submodule(name)
        if not isinstance(module, (nn.Linear, nn.Embedding)) and style.startswith(("colwise", "rowwise", "embedding")):
            why = f"{name} is a {type(module).__name__}, and {style!r} divides nn.Linear and nn.Embedding"
            yield Problem("tp_plan", {name: style}, why, "leave it out of the plan")
        for width in _WIDTHS.get(style, ()):
            count = getattr(module, width, size)
            if count % size and (width, count) not in told:
                told.add((width, count))
                why = f"{name} has {width}={count}, which does not fall into {size} equal parts"
                yield Problem("parallelism_config", {"tp_size": size}, why, f"choose a divisor of {count}")


def shared_weights(model: nn.Module) -> list[list[tuple[str, str]]]:
    """The parameters that stand in several modules: for each, its places as `(module, name)`."""
    places: dict[int, list[tuple[str, str]]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module_name, name))
    return [found for found in places.values() if len(found) > 1]


def share_again(model: nn.Module, shared: list[list[tuple[str, str]]]) -> None:
    """Make one parameter again of what was one before it was divided.

    Raises:
        OptionError: The plan divides its modules differently.
    """
    problems = []
    for places in shared:
        found = [model.get_submodule(module)._parameters[name] for module, name in places]
        if len({_layout(parameter) for parameter in found}) > 1:
            names = " and ".join(module for module, _ in places)
            why = f"{names} share one weight, and the plan divides them differently"
            fix = (
                'let it say "embedding_rowwise" of an embedding beside "colwise_gather_output" of the head, or neither'
            )
            problems.append(Problem("tp_plan", names, why, fix))
            continue
        for module, name in places:
            model.get_submodule(module)._parameters[name] = found[0]
    if problems:
        raise OptionError(problems)


def _layout(parameter: Tensor | None) -> Any:
    return getattr(parameter, "placements", None)
