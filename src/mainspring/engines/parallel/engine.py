"""The engines of processes that divide layers or sequences, with or without others that read different data."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mainspring import checkpoint as ckpt
from mainspring.arguments.fsdp_config import FSDPConfig
from mainspring.checkpoint import sharded
from mainspring.engines.base import EngineOptions
from mainspring.engines.dtensors import settle, step_by_mesh, takes_whole_weights
from mainspring.engines.fsdp.norms import clip_sharded, norm_of_sharded
from mainspring.engines.fsdp.second import FSDP2
from mainspring.engines.fsdp.weights import hand_out, weights_to_hand_out
from mainspring.engines.loaded import is_divided
from mainspring.engines.mesh import build_mesh
from mainspring.engines.parallel.checks import check_adapters, check_sizes
from mainspring.engines.parallel.context import part_of_sequences
from mainspring.engines.parallel.divide import check_plan, divide
from mainspring.engines.processes import Processes, refuse_frozen
from mainspring.engines.states import load_any_optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from mainspring.engines.accelerator import MainspringAccelerator


class Divided(Processes):
    """Processes that hold parts of one model, or read parts of one sequence.

    Those of one group read the same samples and draw the same random numbers, so that what they compute outside of the
    divided layers is the same on each.

    Attributes:
        places: Each process's place along the dimensions of the run.
    """

    kind = "parallel"
    replaces_parameters = True

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        assert options.parallelism is not None
        check_sizes(options.parallelism, accelerator.device.type, scaled=accelerator.scaler is not None)
        super().__init__(accelerator, options)
        self.places = build_mesh(self.device.type, options.parallelism)
        self.data_rank = self.places.data_rank
        self.data_world_size = options.parallelism.data_size
        self.data_group = self.places.data_group

    @property
    def random_rank(self) -> int:
        """The first process of the group: neighbours, which read the same samples, draw the same numbers."""
        return self.rank - self.rank % self.places.sizes.model_size

    @property
    def parallelism_config(self) -> Any:
        """The sizes, as Accelerate's `ParallelismConfig`."""
        return self.places.sizes.to_accelerate()

    @property
    def device_mesh(self) -> Any:
        """The mesh of `Mesh.devices`."""
        return self.places.devices

    def size_of(self, dimension: str) -> int:
        """Processes along a dimension, such as "tp"."""
        return self.places.sizes.sizes[dimension]

    def why_logits(self) -> str | None:
        """Its weights lie in pieces, or its rows do."""
        if self.size_of("tp") > 1:
            return f"{self.size_of('tp')} processes divide the output layer among them"
        if self.data_world_size < self.world_size:
            return "processes divide sequences among them, each of which has a loss of its own part"
        return None

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model whose layers cannot be divided among the processes."""
        super().check_model(model)
        if self.size_of("tp") == 1:
            return
        check_adapters(model, self.size_of("tp"))
        if not is_divided(model):
            check_plan(model, self.size_of("tp"))

    def divide_layers(self, model: nn.Module) -> None:
        """Divide the layers that the model's plan names, in place."""
        if self.size_of("tp") > 1:
            divide(model, self.places.along("tp"))

    def part_of_sequences(self, model: nn.Module, inputs: Any) -> tuple[Callable[[], Any], Any]:
        """This process's part of every sequence, in training. Evaluations read sequences whole on every process."""
        if self.size_of("cp") == 1 or not torch.is_grad_enabled():
            return super().part_of_sequences(model, inputs)
        placed = {name: self.to_device(v) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
        rotation = (self.places.sizes.cp_handler or {}).get("cp_comm_strategy")
        return part_of_sequences(model, placed, self.places.along("cp"), rotation)

    @contextlib.contextmanager
    def accumulate(self, model: nn.Module, sync: bool) -> Iterator[None]:
        """One micro-batch; after the last one of an update, gradients lie as their parameters do."""
        with super().accumulate(model, sync):
            yield
        if sync:
            settle(model.parameters())

    def mean(self, value: torch.Tensor) -> float:
        """The mean over all shares of the data; the losses of the parts of one sequence add up to that of the whole."""
        if self.size_of("cp") > 1:
            value = value.detach().clone()
            dist.all_reduce(value, group=self.places.along("cp").get_group())
        return super().mean(value)


class Parallel(Divided):
    """All processes hold parts of one model. What the plan does not name is whole on each, and stays the same."""

    def place(self, model: nn.Module) -> nn.Module:
        """Divide the model, if it was not divided when it was loaded, and prepare what lies here for forward passes."""
        if not self.is_placed(model):
            if not is_divided(model):
                whole = weights_to_hand_out(model)
                self.divide_layers(model)
                _move_rest(model, self.device)
                hand_out(model, whole, self.device)
            takes_whole_weights(model)
        return super().place(model)

    def prepare(self, model: nn.Module) -> nn.Module:
        """As `place`: a model is divided in evaluations too."""
        placed = self.place(model)
        refuse_frozen(placed)
        return placed

    # ---- one update ----

    def clip_grad_norm(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
    ) -> torch.Tensor:
        """Clip to a total norm of `max_norm` over all pieces; returns the norm before, the same on every process."""
        return clip_sharded(parameters, max_norm, lambda held: self.grad_norm(held, norm_type))

    def grad_norm(self, parameters: Iterable[torch.Tensor], norm_type: float = 2.0) -> torch.Tensor:
        """The total norm over all pieces."""
        held = list(parameters)
        settle(held)
        return norm_of_sharded(held, norm_type, self.device)

    def step(self, optimizer: Optimizer) -> None:
        """One optimizer step."""
        step_by_mesh(optimizer)

    # ---- what a checkpoint holds ----

    def model_state(self, model: nn.Module) -> dict[str, Any] | None:
        """All weights, whole, on the process that writes; nothing on the others, which send what lies there."""
        return sharded.whole_model_state(model) if is_divided(model) else None

    def save_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str, writes: bool) -> None:
        """Write the optimizer's state as one process would have it."""
        state = sharded.on_main_process(optimizer.state_dict())
        if writes:
            ckpt.save_torch(state, os.path.join(folder, ckpt.OPTIMIZER_NAME))

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str) -> bool:
        """Load the optimizer's state, of whatever number of processes."""
        return load_any_optimizer(model, optimizer, folder)


class ParallelShards(Divided, FSDP2):
    """Groups of processes that hold parts of one model read different data, and share it or copy it as FSDP does.

    Without `fsdp` in the options, every group has a copy, and gradients are averaged by the same means.
    """

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        self._copies = options.fsdp is None
        super().__init__(accelerator, dataclasses.replace(options, fsdp=options.fsdp or FSDPConfig()))
        _gather_quietly()
        averaged = self.places.averaged
        assert averaged is not None
        self.mesh = averaged

    def _sharded(self, model: nn.Module) -> nn.Module:
        if self._copies and not getattr(model, "_no_split_modules", None):  # nobody asked how it is to be wrapped
            self.config = dataclasses.replace(self.config, auto_wrap_policy="NO_WRAP")
        return super()._sharded(model)

    def shard(self, model: nn.Module, units: list[nn.Module]) -> nn.Module:
        """Divide the layers, and shard what is left of each."""
        wrapped = super().shard(model, units)
        if self.size_of("cp") > 1:
            _add_up_parts(model, self.data_world_size)
        return wrapped


def _move_rest(model: nn.Module, device: torch.device) -> None:
    """Bring what was not divided where the processes can send it; pieces lie there already."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor) and tensor.device.type != "meta":
            tensor.data = tensor.data.to(device)


@functools.cache
def _gather_quietly() -> None:
    """Keep a warning of torch's from every save: weights in pieces of pieces are gathered in two steps, and can only be so."""
    expected = "sequential all_gather operations will be performed"
    logging.getLogger("torch.distributed.tensor._redistribute").addFilter(
        lambda record: expected not in record.getMessage()
    )


def _add_up_parts(model: nn.Module, shares: int) -> None:
    """Gradients of the parts of a sequence are added up, and averaged over the shares of the data alone."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(float(shares))
