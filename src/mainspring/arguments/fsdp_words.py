"""The words that `fsdp` used to take: `fsdp="full_shard auto_wrap"` is `fsdp=True` and what it says in `fsdp_config`."""

from __future__ import annotations

from typing import Any

from mainspring.arguments.enums import FSDPOption
from mainspring.arguments.fsdp_keys import name_of
from mainspring.arguments.translations import Options, Settled, settings_of
from mainspring.arguments.typed import truth
from mainspring.errors import Problem, did_you_mean

_MODIFIERS = (FSDPOption.OFFLOAD, FSDPOption.AUTO_WRAP)
"""Words beside the strategy. Wrapping is what FSDP does unless `fsdp_config` says otherwise."""

_RESHARD = {FSDPOption.FULL_SHARD: True, FSDPOption.SHARD_GRAD_OP: False}
"""The strategies that the second version of FSDP knows too: whether parameters are freed after the forward pass."""

NOW = "fsdp=True, with what it says in fsdp_config"


def words_of(value: Any) -> list[str]:
    """The words of an `fsdp` that is written in words; none for other values."""
    words = value.split() if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else []
    return words if all(isinstance(word, str) for word in words) else []


def put_words(words: list[str], options: Options, settled: Settled) -> Problem | None:
    """Put what the words say among the options; what `fsdp_config` says itself counts."""
    if len(words) == 1 and (switch := truth(words[0])) is not None:
        options["fsdp"] = switch
        return None
    known = [member.value for member in FSDPOption]
    if unknown := [word for word in words if word not in known]:
        hint = did_you_mean(unknown[0], known)
        return Problem("fsdp", options["fsdp"], f"{unknown[0]!r} is not one of {', '.join(known)}", f"use True{hint}")
    strategies = [FSDPOption(word) for word in words if word not in _MODIFIERS]
    if len(strategies) > 1:
        return Problem("fsdp", options["fsdp"], "names more than one strategy", "choose one")
    config, problem = settings_of("fsdp_config", options, settled)
    if problem is not None:
        return problem
    settings = {name_of(key): value for key, value in config.items()}
    said: dict[str, Any] = {"cpu_offload": True} if FSDPOption.OFFLOAD in words else {}
    for strategy in strategies:
        first_version = settings.get("version") in (1, "1")
        if not first_version and strategy not in _RESHARD:
            why = f"{strategy.value!r} belongs to the first version of FSDP"
            return Problem("fsdp", options["fsdp"], why, "use fsdp=True, or give fsdp_config={'version': 1}")
        said["reshard_after_forward"] = strategy.value if first_version else _RESHARD[strategy]
    added = {name: value for name, value in said.items() if name not in settings}
    options["fsdp"], options["fsdp_config"] = True, {**added, **config}
    return None
