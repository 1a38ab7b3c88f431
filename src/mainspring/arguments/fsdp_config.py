"""`FSDPConfig`: how a model is sharded over processes, by what `fsdp` and `fsdp_config` say."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mainspring.arguments import fsdp_launcher
from mainspring.arguments.fsdp_keys import FILLED_IN, NO_PREFETCH, as_strategy, as_truth, read_settings
from mainspring.arguments.spellings import translate
from mainspring.arguments.typed import truth
from mainspring.errors import OptionError, Problem


@dataclass(frozen=True)
class FSDPConfig:
    """How a model is sharded over processes; what `TrainingArguments(fsdp=True, fsdp_config=...)` comes to.

    Attributes:
        version: 2, torch's `fully_shard`; or 1, its `FullyShardedDataParallel`.
        reshard_after_forward: Whether parameters are freed after the forward pass and gathered again for the backward
            pass; in version 1 the sharding strategy, one of `STRATEGIES`.
        cpu_offload: Whether parameters, gradients and optimizer states lie in the host's memory between their uses.
        activation_checkpointing: Whether wrapped layers recompute their activations in the backward pass.
        cpu_ram_efficient_loading: Whether one process reads the pretrained weights and sends them to the others.
        state_dict_type: Whether a checkpoint holds the whole model in one file, or each process's shards.
        auto_wrap_policy: What makes a module a unit of its own: the class of a layer, its size, or nothing.
        transformer_layer_cls_to_wrap: Class names of these layers; none: what the model says of itself.
        min_num_params: Parameters that make a module a unit, with SIZE_BASED_WRAP.
        xla: Whether the model is sharded by PyTorch/XLA.
        xla_fsdp_v2: Whether that is done by SPMD.
        xla_fsdp_settings: Keywords of XLA's wrapper.
        xla_fsdp_grad_ckpt: Whether layers wrapped by XLA recompute their activations.
        forward_prefetch: Whether the next parameters are gathered during the forward pass. Version 1, as all below.
        backward_prefetch: Whether the next parameters are gathered before (`backward_pre`) or after (`backward_post`)
            the gradients of the current ones are computed; None: neither.
        use_orig_params: Whether the optimizer sees the model's own parameters.
        sync_module_states: Whether every process starts from the parameters of the first.
        limit_all_gathers: Whether the host waits rather than gather too far ahead.
    """

    version: int = 2
    reshard_after_forward: bool | str = True
    cpu_offload: bool = False
    activation_checkpointing: bool = False
    cpu_ram_efficient_loading: bool = False
    state_dict_type: str = "FULL_STATE_DICT"
    auto_wrap_policy: str = "TRANSFORMER_BASED_WRAP"
    transformer_layer_cls_to_wrap: tuple[str, ...] = ()
    min_num_params: int = 0
    xla: bool = False
    xla_fsdp_v2: bool = False
    xla_fsdp_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    xla_fsdp_grad_ckpt: bool = False
    forward_prefetch: bool = False
    backward_prefetch: str | None = None
    use_orig_params: bool = True
    sync_module_states: bool = True
    limit_all_gathers: bool = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> FSDPConfig:
        """The settings that `read_settings` has read, with defaults for the others."""
        given = {key: value for key, value in settings.items() if value is not None}
        first = given.get("version") == 1
        if first or "reshard_after_forward" in given:
            strategy = given.get("reshard_after_forward", True)
            given["reshard_after_forward"] = as_strategy(strategy) if first else as_truth(strategy)
        if given.get("backward_prefetch") == NO_PREFETCH:
            del given["backward_prefetch"]
        layers = given.get("transformer_layer_cls_to_wrap", ())
        given["transformer_layer_cls_to_wrap"] = (layers,) if isinstance(layers, str) else tuple(layers)
        if given.get("min_num_params") and "auto_wrap_policy" not in given:
            given["auto_wrap_policy"] = "SIZE_BASED_WRAP"
        return cls(**given)

    @property
    def strategy(self) -> str:
        """The sharding strategy in the words of version 1, in either version."""
        return as_strategy(self.reshard_after_forward)


def fsdp_settings(args: Any) -> FSDPConfig | None:
    """How the model of these arguments is sharded; None where FSDP was not asked for.

    What the options leave open is what the launcher says (`fsdp_launcher`), or else has its default.

    Args:
        args: Arguments of any class, ours or the reference's.

    Raises:
        OptionError: Settings that cannot be, or on which the options and the launcher do not agree.
    """
    from mainspring.arguments.fsdp_rules import FSDP_RULES  # these read what is made here

    asked, settings = said_by_options(getattr(args, "fsdp", None), getattr(args, "fsdp_config", None))
    taken, problems = taken_over(asked, settings)
    if not (asked or taken is not None or problems):
        return None
    settled = {**settings, **{name: one.value for name, one in (taken or {}).items()}}
    problems += [problem for rule in FSDP_RULES if (problem := rule(_Settled(args, settled))) is not None]
    if problems:
        raise OptionError(problems)
    return FSDPConfig.from_settings(settled)


def taken_over(
    asked: bool | None, settings: Mapping[str, Any]
) -> tuple[dict[str, fsdp_launcher.Said] | None, list[Problem]]:
    """What a run takes over from the launcher (None: that says nothing of FSDP), and where it contradicts the options.

    Args:
        asked: Whether the options ask for FSDP; None: they do not say.
        settings: What they say of it.
    """
    if not fsdp_launcher.asks():
        return None, []
    if asked is False:
        why = f"the launcher says {fsdp_launcher.ASKS}=true"
        return None, [Problem("fsdp", False, why, "leave it out, or start without FSDP")]
    found, problems = fsdp_launcher.said(settings)
    problems += fsdp_launcher.contradictions(settings, found)
    return {name: one for name, one in found.items() if settings.get(name) is None}, problems


def said_by_options(fsdp: Any, fsdp_config: Any) -> tuple[bool | None, dict[str, Any]]:
    """Whether the options ask for FSDP (None: they do not say), and what `fsdp_config` says of it.

    The defaults that it is filled up with say nothing. The reference's arguments may hold what ours have read at construction: words, and older names of settings.

    Raises:
        OptionError: Settings that cannot be.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it was said when they were given
        options, problems = translate({"fsdp": fsdp, "fsdp_config": fsdp_config})
    settings, found = read_settings("fsdp_config", options["fsdp_config"])
    if problems or found:
        raise OptionError([*problems, *found])
    said = {name: value for name, value in (settings or {}).items() if (name, value) not in FILLED_IN.items()}
    return _asked(options["fsdp"]), said


def _asked(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    return truth(value) if isinstance(value, str) and value else None


class _Settled:
    """Arguments with what the launcher added to their settings of FSDP."""

    def __init__(self, args: Any, settings: Mapping[str, Any]) -> None:
        self._args = args
        self.fsdp = True
        self.fsdp_config = settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._args, name, None)
