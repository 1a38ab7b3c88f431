"""What `accelerate launch` and its files say of DeepSpeed: environment variables, which a run takes over."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from mainspring.arguments.deepspeed.filling import USUAL_STAGE
from mainspring.arguments.deepspeed.reading import AUTO, leaves, put, read_config, setting
from mainspring.arguments.typed import truth
from mainspring.errors import Problem, printed

ASKS = "ACCELERATE_USE_DEEPSPEED"
_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_ZERO_INIT = "ACCELERATE_DEEPSPEED_ZERO3_INIT"
_STAGE = "zero_optimization.stage"


def _as_truth(text: str) -> bool:
    found = truth(text)
    if found is None:
        raise ValueError("is no truth value")
    return found


_VARIABLES: Mapping[str, tuple[str, Callable[[str], Any]]] = MappingProxyType(
    {
        _STAGE: ("ACCELERATE_DEEPSPEED_ZERO_STAGE", int),
        "gradient_accumulation_steps": ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", int),
        "gradient_clipping": ("ACCELERATE_GRADIENT_CLIPPING", float),
        "zero_optimization.offload_optimizer.device": ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", str),
        "zero_optimization.offload_optimizer.nvme_path": ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH", str),
        "zero_optimization.offload_param.device": ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", str),
        "zero_optimization.offload_param.nvme_path": ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH", str),
        "zero_optimization.stage3_gather_16bit_weights_on_model_save": (
            "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
            _as_truth,
        ),
    }
)
"""The settings that the launcher has variables for, each with how its text is read."""

_OPTIONS = MappingProxyType(
    {"gradient_accumulation_steps": "gradient_accumulation_steps", "gradient_clipping": "max_grad_norm"}
)
"""Settings that are options of a run as well."""

_UNKNOWN = ("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES",)
"""Variables that ask for what is not here."""

_NOTHING = ("none", "None", "")
"""What the launcher writes where nothing is moved anywhere."""


class Said(NamedTuple):
    """One setting of the launcher's.

    Attributes:
        value: As its type.
        variable: The variable that holds it, or names the file that does.
    """

    value: Any
    variable: str


def asks() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return truth(os.environ.get(ASKS, "")) is True


def wants_empty_parameters() -> bool:
    """Whether, with stage 3, `from_pretrained` is to divide the parameters as it makes them: unless it is told not to."""
    return not asks() or truth(os.environ.get(_ZERO_INIT, "")) is not False


def said() -> tuple[dict[str, Said], list[Problem]]:
    """What the launcher says of DeepSpeed, by path, and what cannot be read of it."""
    if not asks():
        return {}, []
    found, problems = _of_file()
    for path, (variable, kind) in _VARIABLES.items():
        text = os.environ.get(variable, "")
        if text in _NOTHING or text == AUTO:
            continue
        try:
            one = Said(kind(text), variable)
        except ValueError:
            problems.append(Problem(variable, text, "cannot be read", f"write {_KINDS[kind]}"))
            continue
        if path in found and found[path].value not in (AUTO, one.value):
            problems.append(_contradiction(path, found[path].value, one, _FILE))
        found[path] = one
    problems += [
        Problem(name, text, "this is not available", "leave it out of the launcher's options")
        for name in _UNKNOWN
        if (text := os.environ.get(name, "")) not in _NOTHING
    ]
    return found, problems


_KINDS: Mapping[Any, str] = MappingProxyType(
    {int: "a whole number", float: "a number", str: "text", _as_truth: "true or false"}
)


def _of_file() -> tuple[dict[str, Said], list[Problem]]:
    file = os.environ.get(_FILE, "")
    if file in _NOTHING:
        return {}, []
    config, problem = read_config(_FILE, file)
    if problem is not None:
        return {}, [problem]
    return {path: Said(value, _FILE) for path, value in leaves(config)}, []


def take_over(config: dict[str, Any], launcher: Mapping[str, Said]) -> tuple[dict[str, str], list[Problem]]:
    """Put into `config` what it leaves to the launcher; returns who says these settings, and the contradictions.

    Args:
        config: Changed in place.
        launcher: What `said` found.
    """
    said_by: dict[str, str] = {}
    problems: list[Problem] = []
    for path, other in launcher.items():
        there = setting(config, path)
        if there is None or (there == AUTO and other.value != AUTO):
            put(config, path, other.value)
            said_by[path] = other.variable
        elif other.value not in (AUTO, there):
            problems.append(_contradiction(path, there, other, ""))
    if asks() and "zero_optimization" not in config:
        put(config, _STAGE, USUAL_STAGE)
        said_by[_STAGE] = ASKS
    return said_by, problems


def derive_options(args: Any) -> None:
    """Let the options that nobody gave follow the launcher, where these are settings of DeepSpeed as well."""
    found, _ = said()
    for path, option in _OPTIONS.items():
        if path in found and found[path].value != AUTO and not args._was_given(option):
            args._derive(option, found[path].value, found[path].variable)


def _contradiction(path: str, there: Any, other: Said, variable: str) -> Problem:
    why = f"the launcher says {printed(other.value)} ({other.variable})"
    place = f"deepspeed {path} (by {variable})" if variable else f"deepspeed {path}"
    return Problem(place, there, why, "say the same in both, or leave it out of one")
