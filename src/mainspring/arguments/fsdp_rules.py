"""What must hold between the settings of FSDP, and between them and other options. One function a rule, as in `rules`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mainspring.arguments.fsdp_config import FSDPConfig, said_by_options
from mainspring.arguments.fsdp_keys import FIRST_VERSION_ONLY
from mainspring.errors import OptionError, Problem

_NAME = "fsdp_config"


def sharding(a: Any) -> FSDPConfig | None:
    """What the options say of FSDP, where they ask for it and can be read."""
    if not a.fsdp:
        return None
    try:
        asked, settings = said_by_options(a.fsdp, a.fsdp_config)
    except OptionError:
        return None
    return FSDPConfig.from_settings(settings) if asked else None


def sharding_is_one_of_its_version(a: Any) -> Problem | None:
    """Strategies other than full_shard and shard_grad_op belong to version 1."""
    c = sharding(a)
    if c is None or isinstance(c.reshard_after_forward, bool) or c.version == 1:
        return None
    why = f"version 2 has no strategy {c.strategy!r}"
    hybrid = c.strategy.startswith("hybrid")
    sizes = "set parallelism_config={'dp_replicate_size': ..., 'dp_shard_size': ...} instead"
    fix = f"{sizes}, or set version to 1" if hybrid else "leave it out, or set version to 1"
    return Problem(_NAME, {"reshard_after_forward": c.strategy}, why, fix)


def only_what_is_sharded_is_offloaded(a: Any) -> Problem | None:
    """Parameters wait in the host's memory where each process holds a part of them."""
    c = sharding(a)
    if c is None or not c.cpu_offload or c.strategy in ("full_shard", "shard_grad_op"):
        return None
    why = f"the sharding strategy is {c.strategy!r}"
    return Problem(_NAME, {"cpu_offload": True}, why, "use full_shard or shard_grad_op, or leave it out")


def one_way_to_wrap(a: Any) -> Problem | None:
    """Layers are found by their class or by their size."""
    c = sharding(a)
    if c is None or not c.min_num_params or not c.transformer_layer_cls_to_wrap:
        return None
    given = {
        "min_num_params": c.min_num_params,
        "transformer_layer_cls_to_wrap": list(c.transformer_layer_cls_to_wrap),
    }
    return Problem(_NAME, given, "say two ways to choose what is wrapped", "give one of the two")


def one_loader_sends_to_all(a: Any) -> Problem | None:
    """What one process has loaded must reach the others."""
    c = sharding(a)
    if c is None or c.version != 1 or not c.cpu_ram_efficient_loading or c.sync_module_states:
        return None
    why = "only the first process loads the weights, and sync_module_states=False leaves the others without"
    return Problem(_NAME, {"cpu_ram_efficient_loading": True}, why, "leave sync_module_states out")


def xla_settings_need_xla(a: Any) -> Problem | None:
    """Settings of XLA's sharding act with XLA."""
    c = sharding(a)
    if c is None or c.xla:
        return None
    names = ("xla_fsdp_v2", "xla_fsdp_settings", "xla_fsdp_grad_ckpt")
    given = {name: getattr(c, name) for name in names if getattr(c, name)}
    return Problem(_NAME, given, "xla is not set", "set xla to True, or leave it out") if given else None


def xla_recomputes_wrapped_layers(a: Any) -> Problem | None:
    """XLA recomputes the activations of the layers that a policy wraps."""
    c = sharding(a)
    if c is None or not c.xla or not c.xla_fsdp_grad_ckpt or c.auto_wrap_policy != "NO_WRAP":
        return None
    return Problem(_NAME, {"xla_fsdp_grad_ckpt": True}, "auto_wrap_policy is 'NO_WRAP'", "choose another policy")


def one_system_shards(a: Any) -> Problem | None:
    """FSDP and DeepSpeed both take the model apart."""
    if sharding(a) is None or not a.deepspeed:
        return None
    return Problem("fsdp", a.fsdp, "deepspeed is set too", "choose one")


def one_way_to_recompute(a: Any) -> Problem | None:
    """Activations are recomputed by FSDP or by the model."""
    c = sharding(a)
    if c is None or not c.activation_checkpointing or not a.gradient_checkpointing:
        return None
    why = "activation_checkpointing (gradient_checkpointing) is set too, and every activation would be recomputed twice"
    return Problem(_NAME, {"activation_checkpointing": True}, why, "keep the one in fsdp_config: it gathers less")


def a_model_alone_is_whole(a: Any) -> Problem | None:
    """A model that is saved alone is meant for others, who do not read the shards of a run."""
    c = sharding(a)
    if c is None or c.state_dict_type == "FULL_STATE_DICT" or not a.save_only_model:
        return None
    best = ", and load_best_model_at_end could not read it again" if a.load_best_model_at_end else ""
    why = f"save_only_model is set, and shards are no model that others read{best}"
    return Problem(_NAME, {"state_dict_type": c.state_dict_type}, why, "use FULL_STATE_DICT, or leave one of them out")


FSDP_RULES: tuple[Callable[[Any], Problem | None], ...] = (
    sharding_is_one_of_its_version,
    only_what_is_sharded_is_offloaded,
    one_way_to_wrap,
    one_loader_sends_to_all,
    xla_settings_need_xla,
    xla_recomputes_wrapped_layers,
    one_system_shards,
    one_way_to_recompute,
    a_model_alone_is_whole,
)


def version_2_does_not_know(a: Any) -> Problem | None:
    """Version 2 gathers ahead, and keeps the model's own parameters, by itself."""
    c = sharding(a)
    if c is None or c.version == 1:
        return None
    usual = FSDPConfig()
    given = {name: value for name in FIRST_VERSION_ONLY if (value := getattr(c, name)) != getattr(usual, name)}
    why = "has no effect, because only version 1 reads it"
    return Problem(_NAME, given, why, "leave it out, or set version to 1") if given else None


def the_policy_does_not_look_at(a: Any) -> Problem | None:
    """A policy looks at the class of a layer, at its size, or at neither."""
    c = sharding(a)
    if c is None:
        return None
    given: dict[str, Any] = {}
    if c.auto_wrap_policy != "SIZE_BASED_WRAP" and c.min_num_params:
        given["min_num_params"] = c.min_num_params
    if c.auto_wrap_policy != "TRANSFORMER_BASED_WRAP" and c.transformer_layer_cls_to_wrap:
        given["transformer_layer_cls_to_wrap"] = list(c.transformer_layer_cls_to_wrap)
    why = f"has no effect, because auto_wrap_policy is {c.auto_wrap_policy!r}"
    return Problem(_NAME, given, why, "leave it out, or choose the policy that reads it") if given else None


FSDP_NOTICES: tuple[Callable[[Any], Problem | None], ...] = (version_2_does_not_know, the_policy_does_not_look_at)
