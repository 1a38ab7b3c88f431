"""How a model came: whole, or in pieces that were divided when it was loaded.

Every run asks, and most have one process. So nothing of torch's tensors in pieces is imported here, which takes longer than
all the rest of a start: where nobody has imported them, there are none.
"""

from __future__ import annotations

import sys

from torch import Tensor, nn

from mainspring.arguments.parallel_sizes import ParallelSizes
from mainspring.errors import OptionError, Problem


def in_pieces(tensor: Tensor) -> bool:
    """Whether it lies in pieces on several processes: a `DTensor`."""
    return isinstance(tensor, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))


def is_divided(model: nn.Module) -> bool:
    """Whether some of the model's parameters lie in pieces on several processes already."""
    return any(map(in_pieces, model.parameters()))


def is_divided_by_zero(model: nn.Module) -> bool:
    """Whether DeepSpeed's `zero.Init` has left nothing of some parameters where they were."""
    return any(p.numel() != getattr(p, "ds_numel", p.numel()) for p in model.parameters())


def sizes_of_model(model: nn.Module) -> ParallelSizes | None:
    """The sizes with which a model was divided when it was loaded (`from_pretrained(tp_plan="auto")`); None: it was not."""
    tensor = int(getattr(model, "_tp_size", None) or 1)
    if tensor == 1:
        return None
    config = getattr(getattr(model, "config", None), "distributed_config", None)
    return ParallelSizes(
        tp_size=tensor,
        dp_shard_size=int(getattr(config, "fsdp_size", None) or 1),
        dp_replicate_size=int(getattr(config, "dp_replicate_size", None) or 1),
    )


def agreed_sizes(asked: ParallelSizes | None, model: object) -> ParallelSizes | None:
    """The sizes of a run, from its options and from how its model was loaded.

    Raises:
        OptionError: They contradict each other.
    """
    found = sizes_of_model(model) if isinstance(model, nn.Module) else None
    if found is None or asked is None or found.sizes == asked.sizes:
        return asked if found is None else found
    given = {f"{name}_size": asked.sizes[name] for name in asked.names}
    loaded = ", ".join(f"{name}_size={found.sizes[name]}" for name in found.names)
    fix = "give both the same sizes, or leave the option out"
    raise OptionError([Problem("parallelism_config", given, f"the model was loaded with {loaded}", fix)])
