"""What both versions of FSDP share: when a model is sharded, what its checkpoints hold, how one is loaded."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed as dist, nn

from mainspring import checkpoint as ckpt
from mainspring.arguments.parallel_sizes import ParallelSizes
from mainspring.checkpoint import sharded
from mainspring.checkpoint.names import OPTIMIZER_NAME_BIN, SHARDED_MODEL_FOLDER, SHARDED_OPTIMIZER_FOLDER
from mainspring.engines.base import EngineOptions
from mainspring.engines.dtensors import piece
from mainspring.engines.fsdp import features
from mainspring.engines.fsdp.norms import clip_sharded
from mainspring.engines.fsdp.plugin import plugin_of
from mainspring.engines.fsdp.units import check_layer_names, units_of
from mainspring.engines.mesh import DATA, build_mesh
from mainspring.engines.processes import Processes, refuse_frozen
from mainspring.engines.states import load_any_optimizer, weight_shards

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer

    from mainspring.engines.accelerator import MainspringAccelerator


class Sharded(Processes):
    """Every process holds a piece of each parameter, of its gradient and of its optimizer state.

    Units of the model are gathered when they run, and freed after it. Gradients are averaged as their pieces are made.

    Attributes:
        config: How the model is sharded.
        mesh: The processes over which it is.
    """

    kind = "fsdp"
    replaces_parameters = True
    is_fsdp = True

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        _join_world_of_one(accelerator.device)
        super().__init__(accelerator, options)
        assert options.fsdp is not None
        self.config = options.fsdp
        self.mesh = _data_mesh(self.device.type, options.parallelism)
        self.saves_shards = self.config.state_dict_type == "SHARDED_STATE_DICT"
        accelerator.state.fsdp_plugin = plugin_of(self.config)

    # ---- the model ----

    def check_model(self, model: nn.Module) -> None:
        """Refuse layers to be units that the model does not have."""
        if self.around(model) is None:
            check_layer_names(model, self.config)

    def place(self, model: nn.Module) -> nn.Module:
        """Shard `model`, which evaluations need as well as training does. The same model is sharded once."""
        if not self.is_placed(model):
            self._placed = (model, self._sharded(model))
        assert self._placed is not None
        return self._placed[1]

    def prepare(self, model: nn.Module) -> nn.Module:
        """Shard `model` for training."""
        placed = self.place(model)
        refuse_frozen(model)
        return placed

    def _sharded(self, model: nn.Module) -> nn.Module:
        known = self.around(model)
        if known is not None:
            return known
        self._keep_master_weights(model)
        units = units_of(model, self.config)
        if self.config.activation_checkpointing:
            self.check_recomputing()
            features.recompute(units or [model])
        if features.compiles(self.accelerator):
            features.compile_forward(units or [model], self.accelerator)
        if self.accelerator.mixed_precision != "no":
            features.cast_forward(model, self.accelerator)
        wrapped = self.shard(model, units)
        self.check(wrapped)
        return wrapped

    def _keep_master_weights(self, model: nn.Module) -> None:
        """Trained parameters are in fp32 where the run computes in half precision: updates would be lost in them."""
        if self.accelerator.mixed_precision == "no":
            return
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()

    @property
    def half(self) -> torch.dtype | None:
        """What the run computes in, where that is half precision."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)

    @abstractmethod
    def around(self, model: nn.Module) -> nn.Module | None:
        """What forward passes of a sharded model go through; None: it is not sharded."""

    @abstractmethod
    def shard(self, model: nn.Module, units: list[nn.Module]) -> nn.Module:
        """Shard the units and what is left over; returns what forward passes go through."""

    @abstractmethod
    def check(self, wrapped: nn.Module) -> None:
        """Raise where anything else came about than was promised."""

    # ---- one update ----

    def clip_grad_norm(self, parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Clip to a total norm of `max_norm`; returns the norm before clipping, 0-d on the device."""
        return clip_sharded(parameters, max_norm, lambda held: self.grad_norm(held, norm_type))

    @abstractmethod
    def grad_norm(self, parameters: Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
        """The total norm of the gradients over all processes, the same on each."""

    # ---- what a checkpoint holds ----

    def tensors_of(self, model: nn.Module) -> dict[str, Any]:
        """This process's pieces."""
        return {name: piece(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    def model_state(self, model: nn.Module) -> dict[str, Any] | None:
        """All weights by name on the first process, {} on the others; None for a model that is not sharded."""
        wrapped = self.around(model)
        return None if wrapped is None else sharded.whole_model_state(wrapped)

    def save_shards(self, model: nn.Module, folder: str) -> None:
        """Write each process's pieces of the weights."""
        place = os.path.join(folder, SHARDED_MODEL_FOLDER)
        sharded.save_shards(place, {"model": sharded.sharded_model_state(self._wrapped(model))})

    def load_weights(self, model: nn.Module, folder: str) -> ckpt.LoadReport:
        """Load a checkpoint's weights, whole or in pieces."""
        shards = weight_shards(folder)
        if shards is None:
            return self.load_whole_weights(model, folder)
        return sharded.load_model_shards(self._wrapped(model), shards)

    @abstractmethod
    def load_whole_weights(self, model: nn.Module, folder: str) -> ckpt.LoadReport:
        """Load weights that are whole on disk; every process keeps its pieces."""

    def save_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str, writes: bool) -> None:
        """Write the optimizer's state, whole or in pieces."""
        wrapped = self._wrapped(model)
        if self.saves_shards:
            place = os.path.join(folder, SHARDED_OPTIMIZER_FOLDER)
            sharded.save_shards(place, {"optimizer": sharded.sharded_optimizer_state(wrapped, optimizer)})
            return
        state = sharded.whole_optimizer_state(wrapped, optimizer)
        if state:
            ckpt.save_torch(state, os.path.join(folder, OPTIMIZER_NAME_BIN))

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str) -> bool:
        """Load the optimizer's state, whole or in pieces, by the names of the parameters or their numbers."""
        return load_any_optimizer(self._wrapped(model), optimizer, folder)

    def _wrapped(self, model: nn.Module) -> nn.Module:
        wrapped = self.around(model)
        assert wrapped is not None, "its weights were asked for before the model was sharded"
        return wrapped

    # ---- evaluation ----

    def evaluation_batches(self, loader: Iterable[Any]) -> Iterator[tuple[Any, list[int] | None]]:
        """As with other processes; then what forward passes have left gathered is freed."""
        try:
            yield from super().evaluation_batches(loader)
        finally:
            if self._placed is not None:
                self.free(self._placed[1])

    @abstractmethod
    def free(self, wrapped: nn.Module) -> None:
        """Free what is gathered of the parameters."""


def _data_mesh(device_type: str, sizes: ParallelSizes | None) -> DeviceMesh:
    """The processes that share one model, or, in two dimensions, its copies and those that share each."""
    from torch.distributed.device_mesh import init_device_mesh

    if sizes is None or sizes.data_size == 1:
        return init_device_mesh(device_type, (dist.get_world_size(),), mesh_dim_names=("dp_shard",))
    devices = build_mesh(device_type, sizes).devices
    return devices[DATA] if sizes.dp_replicate_size > 1 else devices["dp_shard"]


def _join_world_of_one(device: torch.device) -> None:
    """A launcher may start a single process, which Accelerate lets run without a group."""
    if dist.is_initialized():
        return
    if not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise RuntimeError("fsdp=True: no launcher started this process; start it with torchrun, or leave fsdp out")
    dist.init_process_group("cpu:gloo" if device.type == "cpu" else None)
