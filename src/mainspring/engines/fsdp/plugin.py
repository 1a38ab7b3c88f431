"""What Accelerate's state says of FSDP, for code that reads it there. Nothing of ours does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from mainspring.arguments.fsdp_config import FSDPConfig


def plugin_of(config: FSDPConfig) -> Any:
    """Accelerate's `FullyShardedDataParallelPlugin` of the same settings."""
    from accelerate import FullyShardedDataParallelPlugin

    first = config.version == 1
    only_first: dict[str, Any] = {
        "use_orig_params": config.use_orig_params,
        "forward_prefetch": config.forward_prefetch,
        "limit_all_gathers": config.limit_all_gathers,
        "backward_prefetch": config.backward_prefetch,
    }
    with _environment_kept("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=config.version,
            reshard_after_forward=config.strategy.upper() if first else config.strategy == "full_shard",
            cpu_offload=config.cpu_offload,
            activation_checkpointing=config.activation_checkpointing,
            cpu_ram_efficient_loading=False,
            state_dict_type=config.state_dict_type,
            auto_wrap_policy=config.auto_wrap_policy.lower(),
            transformer_cls_names_to_wrap=list(config.transformer_layer_cls_to_wrap) or None,
            min_num_params=config.min_num_params,
            sync_module_states=False if first else None,
            **(only_first if first else {}),
        )
    # It would refuse the first of these two on the CPU.
    plugin.sync_module_states = config.sync_module_states if first else None
    plugin.cpu_ram_efficient_loading = config.cpu_ram_efficient_loading
    return plugin


@contextlib.contextmanager
def _environment_kept(name: str) -> Iterator[None]:
    """A variable that the plugin sets, and that is the options' to set."""
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
