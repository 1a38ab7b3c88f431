"""Processes that divide the layers of one model (tensor parallelism), or the sequences that it reads (context).

| module | question it answers |
|---|---|
| `engine` | what differs from other engines? |
| `plan` | which modules are divided, and how? where is that read from? |
| `styles` | what do the names in a plan stand for? |
| `checks` | what cannot be divided? |
| `divide` | how is a model divided in place? |
| `context` | how does a process see its part of a sequence? |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mainspring.engines.accelerator import MainspringAccelerator
    from mainspring.engines.base import EngineOptions
    from mainspring.engines.parallel.engine import Divided


def build(accelerator: MainspringAccelerator, options: EngineOptions) -> Divided:
    """The engine of processes that hold parts of one model only, or of groups of such that read different data."""
    from mainspring.engines.parallel.engine import Parallel, ParallelShards

    assert options.parallelism is not None
    sizes = options.parallelism
    return (Parallel if sizes.data_size * sizes.cp_size == 1 else ParallelShards)(accelerator, options)
