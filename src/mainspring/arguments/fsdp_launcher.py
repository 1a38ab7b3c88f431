"""What `accelerate launch` and its files say of FSDP: environment variables, which a run takes over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mainspring.arguments import fsdp_loading
from mainspring.arguments.fsdp_keys import FIRST_VERSION_ONLY, READERS, as_strategy
from mainspring.arguments.typed import truth
from mainspring.errors import Problem, printed

ASKS = "ACCELERATE_USE_FSDP"

_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "version": "FSDP_VERSION",
        "reshard_after_forward": "FSDP_RESHARD_AFTER_FORWARD",
        "cpu_offload": "FSDP_OFFLOAD_PARAMS",
        "activation_checkpointing": "FSDP_ACTIVATION_CHECKPOINTING",
        "cpu_ram_efficient_loading": "FSDP_CPU_RAM_EFFICIENT_LOADING",
        "state_dict_type": "FSDP_STATE_DICT_TYPE",
        "auto_wrap_policy": "FSDP_AUTO_WRAP_POLICY",
        "transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP",
        "min_num_params": "FSDP_MIN_NUM_PARAMS",
        "forward_prefetch": "FSDP_FORWARD_PREFETCH",
        "backward_prefetch": "FSDP_BACKWARD_PREFETCH",
        "use_orig_params": "FSDP_USE_ORIG_PARAMS",
        "sync_module_states": "FSDP_SYNC_MODULE_STATES",
    }
)
_STRATEGY = "FSDP_SHARDING_STRATEGY"
_UNKNOWN = ("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD",)
"""Variables that ask for what is not here."""


class Said(NamedTuple):
    """One setting of the launcher's.

    Attributes:
        value: As its type.
        variable: The variable that holds it.
        text: What is written there.
    """

    value: Any
    variable: str
    text: str


def asks() -> bool:
    """Whether the launcher asks for FSDP."""
    return truth(fsdp_loading.before(ASKS) or "") is True


def said(options: Mapping[str, Any]) -> tuple[dict[str, Said], list[Problem]]:
    """What the launcher says that bears on the run, and what cannot be read of it.

    It hands on the defaults of its own options too, for either version and every policy. What the version and the
    policy in question do not look at is left out.

    Args:
        options: What `fsdp_config` says, which may decide both.
    """
    found: dict[str, Said] = {}
    problems = [
        Problem(name, text, "this is not available", "leave it out of the launcher's options")
        for name in _UNKNOWN
        if truth(text := os.environ.get(name, "")) is True
    ]
    first = _is_first(options)
    for name, variable in _variables(first).items():
        written = fsdp_loading.before(variable)
        if not written or (name in FIRST_VERSION_ONLY and not first):
            continue
        value, complaint = READERS[name](written)
        if complaint is not None:
            problems.append(Problem(variable, written, *complaint))
            continue
        found[name] = Said(value, variable, written)
    policy = options.get("auto_wrap_policy") or (
        found["auto_wrap_policy"].value if "auto_wrap_policy" in found else None
    )
    if policy != "SIZE_BASED_WRAP":
        found.pop("min_num_params", None)
    if policy in ("SIZE_BASED_WRAP", "NO_WRAP"):
        found.pop("transformer_layer_cls_to_wrap", None)
    return found, problems


def _is_first(options: Mapping[str, Any]) -> bool:
    """Whether the run is of version 1."""
    return str(options.get("version") or os.environ.get(_VARIABLES["version"], "2")) == "1"


def _variables(first: bool) -> Mapping[str, str]:
    """The variable of each setting: version 1 reads its strategy from one of its own, and so does who has only that."""
    own = os.environ.get(_STRATEGY) and (first or not os.environ.get(_VARIABLES["reshard_after_forward"]))
    return {**_VARIABLES, "reshard_after_forward": _STRATEGY} if own else _VARIABLES


def contradictions(options: Mapping[str, Any], launcher: Mapping[str, Said]) -> list[Problem]:
    """Where `fsdp_config` and the launcher do not say the same: neither wins."""
    problems = []
    for name, other in launcher.items():
        if options.get(name) is None or _same(name, options[name], other.value):
            continue
        why = f"the launcher says {other.variable}={printed(other.text)}"
        problems.append(
            Problem("fsdp_config", {name: options[name]}, why, "say the same in both, or leave it out here")
        )
    return problems


def _same(name: str, value: Any, other: Any) -> bool:
    if name == "reshard_after_forward":
        return as_strategy(value) == as_strategy(other)
    return bool(value == other)
