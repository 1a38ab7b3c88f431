"""`ParallelSizes`: over how many processes a model is copied, sharded and split; what `parallelism_config` says."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mainspring.arguments.masking import masked
from mainspring.arguments.normalise import read
from mainspring.arguments.typed import accepted_types, truth, typed
from mainspring.errors import OptionError, Problem, did_you_mean

if TYPE_CHECKING:
    from accelerate import ParallelismConfig

ASKS = "ACCELERATE_USE_PARALLELISM_CONFIG"
_PREFIX = "PARALLELISM_CONFIG_"
_NAME = "parallelism_config"

DIMENSIONS = ("dp_replicate", "dp_shard", "cp", "sp", "tp")
"""The ways, from those between the furthest processes to those between the nearest."""


@dataclass(frozen=True, kw_only=True)
class ParallelSizes:
    """How many processes take part in each way of sharing one run. Their product is the number of processes.

    The attributes have the names that they have in Accelerate's `ParallelismConfig`.

    Attributes:
        dp_replicate_size: Copies of the model, each trained on other samples.
        dp_shard_size: Processes that hold one copy between them, each trained on other samples.
        tp_size: Processes that split every layer.
        cp_size: Processes that split every sequence, and pass keys and values round.
        cp_backend: Whose: "torch".
        sp_size: Processes that split every sequence, and change to splitting heads for attention.
        sp_backend: Whose: "deepspeed".
        tp_handler: Settings of the first of these: `enable_async_tp`.
        cp_handler: Of the second: `cp_comm_strategy`, "allgather" or "alltoall".
        sp_handler: Of the third: `sp_seq_length`, `sp_seq_length_is_variable`, `sp_attn_implementation`.
    """

    dp_replicate_size: int = 1
    dp_shard_size: int = 1
    tp_size: int = 1
    cp_size: int = 1
    cp_backend: str = "torch"
    sp_size: int = 1
    sp_backend: str = "deepspeed"
    tp_handler: Mapping[str, Any] | None = None
    cp_handler: Mapping[str, Any] | None = None
    sp_handler: Mapping[str, Any] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The size of every way, in the order of `DIMENSIONS`."""
        return {name: getattr(self, f"{name}_size") for name in DIMENSIONS}

    @property
    def names(self) -> tuple[str, ...]:
        """The ways that are used: those of more than one process."""
        return tuple(name for name, size in self.sizes.items() if size > 1)

    @property
    def total_size(self) -> int:
        """Processes that the run needs."""
        return math.prod(self.sizes.values())

    @property
    def data_size(self) -> int:
        """Processes, or groups of them, that are trained on different samples."""
        return self.dp_replicate_size * self.dp_shard_size

    @property
    def model_size(self) -> int:
        """Processes that work on the same samples."""
        return self.total_size // self.data_size

    def to_dict(self) -> dict[str, Any]:
        """What was said, as plain values: the sizes above 1, and the settings."""
        plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}
        return {name: value for name, value in plain.items() if value != _DEFAULTS[name]}

    def to_accelerate(self) -> ParallelismConfig:
        """Accelerate's object of the same sizes."""
        from accelerate import ParallelismConfig
        from accelerate.utils import dataclasses as theirs

        given = dict(vars(self))
        for name, kind in (
            ("tp_handler", "TorchTensorParallelConfig"),
            ("cp_handler", "TorchContextParallelConfig"),
            ("sp_handler", "DeepSpeedSequenceParallelConfig"),
        ):
            if given[name] is not None:
                given[name] = getattr(theirs, kind)(**given[name])
        copies = given.pop("dp_replicate_size")
        found = ParallelismConfig(**given)
        found._set_size("dp_replicate", copies)  # its constructor refuses copies of split models that are not sharded
        return found


_DEFAULTS = vars(ParallelSizes())

_SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tp_handler": {"enable_async_tp": bool},
        "cp_handler": {"cp_comm_strategy": str | None},
        "sp_handler": {
            "sp_seq_length": int | None,
            "sp_seq_length_is_variable": bool | None,
            "sp_attn_implementation": str | None,
        },
    }
)
_CHOICES = {
    "cp_backend": ("torch",),
    "sp_backend": ("deepspeed",),
    "cp_comm_strategy": ("allgather", "alltoall"),
}


def read_sizes(option: str, value: Any) -> tuple[Any, list[Problem]]:
    """Return `(the sizes, [])`, or `(value, what is wrong with it)`; None stays None.

    Args:
        option: The option that holds them.
        value: A `ParallelSizes`, Accelerate's `ParallelismConfig`, a mapping, JSON text or the path of a JSON file.
    """
    if isinstance(value, ParallelSizes) or value is None:
        return value, [] if value is None else _together(option, value)
    given, problem = _mapping_of(option, value)
    if problem is not None:
        return value, [problem]
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, item in given.items():
        values[key], found = _read_one(option, key, item)
        problems.extend(found)
    if problems:
        return value, problems
    sizes = ParallelSizes(**{key: item for key, item in values.items() if item is not None})
    problems = _together(option, sizes)
    return (value, problems) if problems else (sizes, [])


def _mapping_of(option: str, value: Any) -> tuple[Any, Problem | None]:
    """The settings by name. Accelerate's object also holds a mesh of devices, which is none."""
    if all(hasattr(value, f"{name}_size") for name in DIMENSIONS):
        return {name: getattr(value, name) for name in _DEFAULTS}, None
    return read(option, value, frozenset({dict}), None, True)


def _read_one(option: str, key: str, item: Any) -> tuple[Any, list[Problem]]:
    if key not in _DEFAULTS:
        fix = f"leave it out{did_you_mean(key, _DEFAULTS)}"
        return item, [Problem(option, masked({key: item}), f"there is no setting {key!r}", fix)]
    if item is None:
        return None, []
    if key in _SETTINGS:
        return _read_settings(option, key, item)
    kind = str if key in _CHOICES else int
    found, problem = typed(option, item, frozenset({kind}))
    if problem is not None:
        return item, [Problem(option, masked({key: item}), f"{key} {problem.why}", problem.fix)]
    if kind is int and found < 1:
        return item, [Problem(option, masked({key: item}), f"{key} must be at least 1", "give a number of processes")]
    return found, _not_chosen(option, key, key, found)


def _read_settings(option: str, key: str, item: Any) -> tuple[Any, list[Problem]]:
    """The settings of one way, from a mapping or an object of Accelerate's."""
    given = item if isinstance(item, Mapping) else vars(item) if dataclasses.is_dataclass(item) else None
    if given is None:
        return item, [
            Problem(option, masked({key: item}), f"{key} is a {type(item).__name__}", "give its settings in braces")
        ]
    known = _SETTINGS[key]
    values, problems = {}, []
    for name, setting in given.items():
        if name not in known:
            fix = f"leave it out{did_you_mean(str(name), known)}"
            problems.append(Problem(option, masked({key: {name: setting}}), f"there is no setting {name!r}", fix))
            continue
        values[name], problem = typed(option, setting, accepted_types(known[name]))
        if problem is not None:
            problems.append(Problem(option, masked({key: {name: setting}}), f"{name} {problem.why}", problem.fix))
        elif setting is not None:
            problems.extend(_not_chosen(option, key, name, values[name]))
    return values, problems


def _not_chosen(option: str, key: str, name: str, value: Any) -> list[Problem]:
    choices: Sequence[str] = _CHOICES.get(name, (value,))
    if value in choices:
        return []
    given = {key: value} if key == name else {key: {name: value}}
    return [Problem(option, given, f"{name} is not one of {', '.join(choices)}", "choose one of them")]


def _together(option: str, sizes: ParallelSizes) -> list[Problem]:
    """What no run can be, however many processes it has."""
    problems = []
    if sizes.cp_size > 1 and sizes.sp_size > 1:
        given = {"cp_size": sizes.cp_size, "sp_size": sizes.sp_size}
        problems.append(Problem(option, given, "both split the sequence", "choose one of the two"))
    return problems


def a_way_that_nobody_takes(a: Any) -> Problem | None:
    """Settings of one way of sharing act where several processes take part in it."""
    sizes = a.parallelism_config
    if not isinstance(sizes, ParallelSizes):
        return None
    idle = [name for name in _SETTINGS if getattr(sizes, name) and name.removesuffix("_handler") not in sizes.names]
    given = {name: dict(getattr(sizes, name)) for name in idle}
    ways = ", ".join(f"{name.removesuffix('_handler')}_size" for name in idle)
    why = f"has no effect, because {ways} is 1"
    return Problem(_NAME, given, why, "give the number of processes, or leave it out") if given else None


def parallel_sizes(args: Any) -> ParallelSizes | None:
    """How the processes of a run share it; None where neither the arguments nor the launcher say.

    Args:
        args: Arguments of any class, ours or the reference's.

    Raises:
        OptionError: Sizes that cannot be, or on which the arguments and the launcher do not agree.
    """
    sizes, problems = read_sizes(_NAME, getattr(args, _NAME, None))
    given: ParallelSizes | None = sizes
    launched, found = said_by_launcher()
    if launched is not None and given is not None and not problems:
        found += _contradictions(given, launched)
    if problems or found:
        raise OptionError([*problems, *found])
    return launched if given is None else given


def said_by_launcher() -> tuple[ParallelSizes | None, list[Problem]]:
    """The sizes in the variables of `accelerate launch` (None: it does not ask for any), and what is wrong with them."""
    if truth(os.environ.get(ASKS, "")) is not True:
        return None, []
    said = {key: os.environ[name] for key in _DEFAULTS if (name := f"{_PREFIX}{key.upper()}") in os.environ}
    settings: dict[str, Any] = dict(said)
    for handler, known in _SETTINGS.items():
        written = {key: os.environ[name] for key in known if (name := f"{_PREFIX}{key.upper()}") in os.environ}
        way = handler.removesuffix("_handler")
        if written and said.get(f"{way}_size", "1") != "1":  # of a way that is not used, it hands on defaults
            settings[handler] = written
    sizes, problems = read_sizes(_NAME, settings)
    named = [replace(problem, fix=f"correct {_PREFIX}* in the launcher's options") for problem in problems]
    return (None, named) if problems else (sizes, [])


def _contradictions(given: ParallelSizes, launched: ParallelSizes) -> list[Problem]:
    """Where both say something and not the same: neither wins."""
    problems = []
    for key, value in vars(launched).items():
        own = getattr(given, key)
        if value is not None and own != value and not (key in _SETTINGS and own is None):
            why = f"the launcher says {_PREFIX}{key.upper()}={value}"
            problems.append(Problem(_NAME, {key: own}, why, "say the same in both, or leave the option out"))
    return problems
