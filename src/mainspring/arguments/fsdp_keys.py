"""How the settings in `fsdp_config` are read: their names, in whichever spelling, and the values each may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mainspring.arguments.masking import masked
from mainspring.arguments.normalise import read
from mainspring.arguments.typed import truth, typed
from mainspring.errors import Problem, did_you_mean

STRATEGIES = ("full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2")
"""Sharding strategies of version 1, in the order of the numbers that Accelerate's files have for them, from 1 on."""

STATE_DICT_TYPES = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
WRAP_POLICIES = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
BACKWARD_PREFETCHES = ("backward_pre", "backward_post")
NO_PREFETCH = "no_prefetch"
"""The word for neither: None leaves it to the launcher."""

FIRST_VERSION_ONLY = (
    "forward_prefetch",
    "backward_prefetch",
    "use_orig_params",
    "sync_module_states",
    "limit_all_gathers",
)
"""Settings that only version 1 knows."""

FILLED_IN: Mapping[str, Any] = MappingProxyType(
    {"min_num_params": 0, "xla": False, "xla_fsdp_v2": False, "xla_fsdp_grad_ckpt": False}
)
"""Settings that `fsdp_config` always holds where FSDP is asked for, as in the reference."""

Complaint = tuple[str, str]
"""What is wrong with a value, and what to do about it."""

Reader = Callable[[Any], "tuple[Any, Complaint | None]"]


def as_strategy(value: bool | str) -> str:
    """A sharding strategy by its name: freeing parameters after the forward pass is `full_shard`."""
    return value if isinstance(value, str) else "full_shard" if value else "shard_grad_op"


def as_truth(value: bool | str) -> bool | str:
    """Whether parameters are freed after the forward pass; a strategy that version 2 does not have, as it is."""
    return {"full_shard": True, "shard_grad_op": False}.get(value, value) if isinstance(value, str) else value


def _chosen(item: Any, choices: Sequence[str]) -> tuple[Any, Complaint | None]:
    """One of some words, in capitals or not."""
    words = {choice.lower(): choice for choice in choices}
    if isinstance(item, str) and item.strip().lower() in words:
        return words[item.strip().lower()], None
    hint = did_you_mean(item, choices) if isinstance(item, str) else ""
    return item, (f"is not one of {', '.join(choices)}", f"choose one of them{hint}")


def _of_type(kind: Any) -> Reader:
    def reader(item: Any) -> tuple[Any, Complaint | None]:
        found, problem = typed("", item, frozenset({kind}))
        return (found, None) if problem is None else (item, (problem.why, problem.fix))

    return reader


def _version(item: Any) -> tuple[Any, Complaint | None]:
    number, complaint = _of_type(int)(item)
    return (number, None) if complaint is None and number in (1, 2) else (item, ("is neither 1 nor 2", "use 2"))


def _reshard(item: Any) -> tuple[Any, Complaint | None]:
    """A truth value, a strategy, or the number of one."""
    word = str(item) if isinstance(item, (bool, int, str)) else ""
    if word.isdecimal() and 1 < int(word) <= len(STRATEGIES):
        return STRATEGIES[int(word) - 1], None
    if (switch := truth(word)) is not None:
        return switch, None  # 1, the number of full_shard, says the same
    found, complaint = _chosen(item, STRATEGIES)
    return found, complaint and (f"is neither a truth value nor one of {', '.join(STRATEGIES)}", complaint[1])


def _state_dict_type(item: Any) -> tuple[Any, Complaint | None]:
    if isinstance(item, str) and item.upper() == "LOCAL_STATE_DICT":
        return item, ("cannot be loaded by another number of processes", "use SHARDED_STATE_DICT")
    return _chosen(item, STATE_DICT_TYPES)


def _wrap_policy(item: Any) -> tuple[Any, Complaint | None]:
    return _chosen(item, WRAP_POLICIES)


def _backward_prefetch(item: Any) -> tuple[Any, Complaint | None]:
    """One of two words, or the word for neither; Accelerate's files number them."""
    if isinstance(item, str) and item.strip().lower() in (NO_PREFETCH, "none", ""):
        return NO_PREFETCH, None
    numbered = dict(zip("123", (*BACKWARD_PREFETCHES, NO_PREFETCH), strict=True))
    return (numbered[str(item)], None) if str(item) in numbered else _chosen(item, BACKWARD_PREFETCHES)


def _layers(item: Any) -> tuple[Any, Complaint | None]:
    """Class names, as a list; in one text they stand between commas."""
    if isinstance(item, str):
        return [name.strip() for name in item.split(",") if name.strip()], None
    return _of_type(list[str])(item)


def _min_num_params(item: Any) -> tuple[Any, Complaint | None]:
    number, complaint = _of_type(int)(item)
    if complaint is None and number >= 0:
        return number, None
    return item, ("is no number of parameters", "give a whole number, 0 or more")


_truth = _of_type(bool)

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "version": _version,
        "reshard_after_forward": _reshard,
        "cpu_offload": _truth,
        "activation_checkpointing": _truth,
        "cpu_ram_efficient_loading": _truth,
        "state_dict_type": _state_dict_type,
        "auto_wrap_policy": _wrap_policy,
        "transformer_layer_cls_to_wrap": _layers,
        "min_num_params": _min_num_params,
        "xla": _truth,
        "xla_fsdp_v2": _truth,
        "xla_fsdp_settings": _of_type(dict),
        "xla_fsdp_grad_ckpt": _truth,
        "forward_prefetch": _truth,
        "backward_prefetch": _backward_prefetch,
        "use_orig_params": _truth,
        "sync_module_states": _truth,
        "limit_all_gathers": _truth,
    }
)
"""Every setting, and what reads its value."""

_OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "offload_params": "cpu_offload",
        "sharding_strategy": "reshard_after_forward",
        "backward_prefetch_policy": "backward_prefetch",
        "transformer_cls_to_wrap": "transformer_layer_cls_to_wrap",
        "transformer_cls_names_to_wrap": "transformer_layer_cls_to_wrap",
    }
)
"""What Accelerate's files and variables call some of them."""


def name_of(key: str) -> str:
    """The setting that a key means: `fsdp_` before it does not count, nor does Accelerate's name for it."""
    plain = key.removeprefix("fsdp_")
    return _OTHER_NAMES.get(plain, plain)


def read_settings(option: str, value: Any) -> tuple[Any, list[Problem]]:
    """Return `(what the settings say, by name and as their types, [])`, or `(value, what is wrong with it)`.

    Args:
        option: The option that holds them.
        value: A mapping, JSON text, the path of a JSON file, or None.
    """
    given, problem = read(option, value, frozenset({dict, type(None)}), None, True)
    if problem is not None:
        return value, [problem]
    if given is None:
        return None, []
    settings: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, item in given.items():
        name = name_of(key)
        found, complaint = _read_one(key, name, item)
        if complaint is None and settings.get(name, found) != found:
            complaint = (f"{name} is given twice, also as {settings[name]!r}", "give one of the two")
        if complaint is not None:
            problems.append(Problem(option, masked({key: item}), *complaint))
        settings[name] = found
    return (value, problems) if problems else (settings, [])


def _read_one(key: str, name: str, item: Any) -> tuple[Any, Complaint | None]:
    if name not in READERS:
        prefix = "fsdp_" if key.startswith("fsdp_") else ""
        known = [prefix + other for other in (*READERS, *_OTHER_NAMES)]
        return item, (f"there is no setting {key!r}", f"leave it out{did_you_mean(key, known)}")
    if item is None:
        return None, None
    found, complaint = READERS[name](item)
    return found, complaint and (f"{key} {complaint[0]}", complaint[1])
