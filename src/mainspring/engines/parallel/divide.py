"""Dividing a model's layers among the processes of one tensor-parallel group, in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.utils._pytree import tree_any, tree_map

from mainspring.engines.dtensors import whole
from mainspring.engines.parallel.checks import check_divisible, share_again, shared_weights
from mainspring.engines.parallel.plan import expand, plan_of

_IN_PIECES = ("colwise", "rowwise", "embedding")


def divide(model: nn.Module, mesh: DeviceMesh) -> None:
    """Replace the parameters of the modules that the model's plan names by this process's pieces of them.

    Args:
        model: The model, whole and alike on every process.
        mesh: The processes that share its layers, in one dimension.

    Raises:
        OptionError: There is no plan, or the model cannot be divided so.
    """
    planned = check_plan(model, mesh.size())
    said = {name: words for name, (words, _) in planned.items()}
    shared = shared_weights(model)
    for name, (_, style) in planned.items():
        parallelize_module(model.get_submodule(name), mesh, style, src_data_rank=None)
    share_again(model, shared)
    model.register_forward_hook(_whole_outputs)
    _check_pieces(model, said, mesh)


def check_plan(model: nn.Module, size: int) -> dict[str, tuple[Any, ParallelStyle]]:
    """What the model's plan says of its modules, each with its style, once it is clear that `size` processes can do that.

    Raises:
        OptionError: There is no plan, or the model cannot be divided so.
    """
    planned = expand(plan_of(model, size), model)
    check_divisible(model, {name: words for name, (words, _) in planned.items()}, size)
    return planned


def _whole_outputs(module: nn.Module, args: Any, output: Any) -> Any:
    """What leaves the model is whole: losses and logits, where a style of the plan left them in pieces."""
    if not tree_any(lambda leaf: isinstance(leaf, DTensor), output):
        return output
    return tree_map(lambda leaf: whole(leaf) if isinstance(leaf, Tensor) else leaf, output)


def _check_pieces(model: nn.Module, said: dict[str, Any], mesh: DeviceMesh) -> None:
    """What was promised: each divided layer's weight lies in pieces on all processes of the mesh."""
    for name, words in said.items():
        if isinstance(words, str) and words.startswith(_IN_PIECES):
            weight = model.get_submodule(name).weight
            assert isinstance(weight, DTensor), f"{name} was not divided"
            assert weight.device_mesh == mesh, f"{name} lies on another mesh"
            assert weight.placements[0].is_shard(), f"{name} is whole on every process"
