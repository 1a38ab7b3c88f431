"""The ways to divide a module, by the names that transformers' plans use for them, as torch's `ParallelStyle`s."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import distributed as dist, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, SequenceParallel


class Whole(ParallelStyle):
    """A module that every process has whole."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return module


class SummedGradients(ParallelStyle):
    """A module that every process has whole, but that sees only the heads which lie there, as a norm over each head.

    The gradient of its parameters is the sum over the processes.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward, group = module.forward, device_mesh.get_group()
        summing: Callable[..., Any] = _SumOfGradients.apply

        def summed(*args: Any, **kwargs: Any) -> Any:
            with _parameters_as(module, lambda parameter: summing(parameter, group)):
                return forward(*args, **kwargs)

        module.forward = summed
        return module


@contextlib.contextmanager
def _parameters_as(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    """Let a module see something else in the place of each of its own parameters."""
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    module._parameters.update({name: change(parameter) for name, parameter in own.items()})
    try:
        yield
    finally:
        module._parameters.update(own)


class _SumOfGradients(torch.autograd.Function):
    """The same tensor; its gradient is added up over a group."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


STYLES: Mapping[str, Callable[[], ParallelStyle]] = MappingProxyType(
    {
        "colwise": ColwiseParallel,
        "colwise_gather_output": lambda: ColwiseParallel(output_layouts=Replicate()),
        "colwise_rep": lambda: ColwiseParallel(output_layouts=Replicate()),
        "rowwise": RowwiseParallel,
        "rowwise_split_input": lambda: RowwiseParallel(input_layouts=Replicate()),
        "rowwise_rep": lambda: RowwiseParallel(input_layouts=Replicate()),
        "embedding_rowwise": lambda: RowwiseParallel(input_layouts=Replicate()),
        "embedding_colwise": lambda: ColwiseParallel(output_layouts=Replicate()),
        "sequence_parallel": lambda: SequenceParallel(use_local_output=True),
        "replicated_with_grad_allreduce": SummedGradients,
        "replicate": Whole,
    }
)
"""What the names in a plan stand for. Plans may also hold a `ParallelStyle` of torch's instead of a name."""
