"""Models whose parameters, gradients and optimizer states lie in pieces on the processes (FSDP), on torch's own tools.

| module | question it answers |
|---|---|
| `engine` | what do both versions of FSDP share? |
| `second` | version 2: torch's `fully_shard` |
| `first` | version 1: torch's `FullyShardedDataParallel` |
| `units` | which modules are gathered and freed together? |
| `features` | autocast, recomputed activations, compiled layers |
| `weights` | where do the weights come from that are handed out? |
| `norms` | what is the norm of gradients in pieces? |
| `plugin` | what does Accelerate's state tell others of it? |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mainspring.engines.accelerator import MainspringAccelerator
    from mainspring.engines.base import EngineOptions
    from mainspring.engines.fsdp.engine import Sharded


def build(accelerator: MainspringAccelerator, options: EngineOptions) -> Sharded:
    """The engine of the version that the options name."""
    from mainspring.engines.fsdp.first import FSDP1
    from mainspring.engines.fsdp.second import FSDP2

    assert options.fsdp is not None
    return (FSDP1 if options.fsdp.version == 1 else FSDP2)(accelerator, options)
