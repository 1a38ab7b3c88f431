"""FSDP in its first version: torch's `FullyShardedDataParallel`, which flattens the parameters of each unit."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    BackwardPrefetch,
    CPUOffload,
    FullyShardedDataParallel,
    MixedPrecision,
    ShardingStrategy,
)
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.fsdp.wrap import CustomPolicy

from mainspring import checkpoint as ckpt
from mainspring.engines.base import EngineOptions
from mainspring.engines.fsdp.engine import Sharded
from mainspring.engines.fsdp.norms import norm_of_sharded
from mainspring.engines.fsdp.weights import send_whole, to_memory, weights_to_hand_out
from mainspring.errors import OptionError, Problem
from mainspring.model import note_full_sizes

STRATEGIES = {
    "full_shard": ShardingStrategy.FULL_SHARD,
    "shard_grad_op": ShardingStrategy.SHARD_GRAD_OP,
    "no_shard": ShardingStrategy.NO_SHARD,
    "hybrid_shard": ShardingStrategy.HYBRID_SHARD,
    "hybrid_shard_zero2": ShardingStrategy._HYBRID_SHARD_ZERO2,
}
_WITH_COPIES = {
    ShardingStrategy.FULL_SHARD: ShardingStrategy.HYBRID_SHARD,
    ShardingStrategy.SHARD_GRAD_OP: ShardingStrategy._HYBRID_SHARD_ZERO2,
}
_PREFETCHES = {"backward_pre": BackwardPrefetch.BACKWARD_PRE, "backward_post": BackwardPrefetch.BACKWARD_POST}
_AROUND = "_mainspring_around"
"""Where a model remembers its wrapper."""


class FSDP1(Sharded):
    """`model_wrapped` is a `FullyShardedDataParallel` around the model, with another around each unit."""

    def __init__(self, accelerator: Any, options: EngineOptions) -> None:
        super().__init__(accelerator, options)
        if self.config.cpu_offload and self.device.type == "cpu":
            why = "version 1 offloads from an accelerator to the CPU, and this run is on the CPU"
            raise OptionError(
                [Problem("fsdp_config", {"cpu_offload": True}, why, "leave it out, or leave version out")]
            )
        if self.scaler is not None:
            self.scaler = accelerator.scaler = AgreeingScaler.like(self.scaler, self.device)
        if not self.config.use_orig_params:
            warnings.warn(
                "fsdp_config={'use_orig_params': False}: the parameters of each unit become one, so that all of them are "
                "decayed by weight_decay, and those that are frozen cannot be beside others",
                UserWarning,
                stacklevel=2,
            )

    def why_no_averages(self) -> str | None:
        """Pieces of a flat parameter are those of no parameter."""
        return (
            "the first version of FSDP flattens parameters together, and what of each lies on a process has no shape to "
            "be saved in; its second version, the default, can"
        )

    # ---- the model ----

    def around(self, model: nn.Module) -> nn.Module | None:
        """The wrapper around a model that is sharded."""
        if isinstance(model, FullyShardedDataParallel):
            return model
        found = model.__dict__.get(_AROUND)
        assert found is None or isinstance(found, nn.Module)
        return found

    def shard(self, model: nn.Module, units: list[nn.Module]) -> nn.Module:
        """Put `FullyShardedDataParallel` around the units and the model."""
        config, chosen = self.config, {id(unit) for unit in units}
        strategy, mesh = self._plan
        note_full_sizes(model)
        self._unify_dtypes([*units, model])
        weights_to_hand_out(model)  # raises where there are none
        to_memory(model)
        alike = config.sync_module_states or config.cpu_ram_efficient_loading
        if alike and self.device.type == "cpu":
            send_whole(model)  # torch's own synchronisation refuses parameters on the CPU
            alike = False
        wrapped = FullyShardedDataParallel(
            model,
            device_mesh=mesh,
            sharding_strategy=strategy,
            cpu_offload=CPUOffload(offload_params=config.cpu_offload),
            auto_wrap_policy=CustomPolicy(lambda module: id(module) in chosen),
            backward_prefetch=_PREFETCHES.get(config.backward_prefetch or ""),
            mixed_precision=self._precision(),
            # Without a device, torch looks for an accelerator and finds none.
            device_id=torch.device("cpu") if self.device.type == "cpu" else self.device,
            sync_module_states=alike,
            forward_prefetch=config.forward_prefetch,
            limit_all_gathers=config.limit_all_gathers,
            use_orig_params=config.use_orig_params,
        )
        model.__dict__[_AROUND] = wrapped  # and not as a submodule, which would hold itself
        return wrapped

    def _unify_dtypes(self, units: list[nn.Module]) -> None:
        """A flat parameter has one dtype: frozen weights in half precision join trained ones, which are kept in fp32.

        They are gathered in half precision all the same, so that the numbers stay; their pieces take twice the memory.

        Raises:
            OptionError: The run does not compute in half precision, and would with them.
        """
        seen: set[nn.Parameter] = set()
        for unit in units:  # inner ones first
            own = [parameter for parameter in unit.parameters() if parameter not in seen]
            seen.update(own)
            dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in own})
            if len(dtypes) < 2:
                continue
            if self.half is None:
                why = (
                    f"version 1 makes one parameter of each unit, and {type(unit).__name__} has {' and '.join(dtypes)}"
                )
                fix = "leave the version out, which is 2, set bf16=True, or load the model in one dtype"
                raise OptionError([Problem("fsdp_config", {"version": 1}, why, fix)])
            for parameter in own:
                if parameter.dtype in (torch.float16, torch.bfloat16):
                    parameter.data = parameter.data.float()

    @functools.cached_property
    def _plan(self) -> tuple[ShardingStrategy, DeviceMesh]:
        """The strategy and its mesh: of one dimension, or of two where there are copies.

        torch takes the dimensions of the mesh as the strategy has them. Left to itself it would shard over the copies, or
        not average over them where each is held by one process.
        """
        wanted, mesh = STRATEGIES[self.config.strategy], self.mesh
        if wanted in _WITH_COPIES.values() and mesh.ndim == 1:
            mesh = self._copies_on_machines()
        if wanted is ShardingStrategy.NO_SHARD or (mesh.size(-1) == 1 and mesh.size() > 1):
            return ShardingStrategy.NO_SHARD, self._everybody()
        return _WITH_COPIES.get(wanted, wanted) if mesh.ndim == 2 else wanted, mesh

    def _copies_on_machines(self) -> DeviceMesh:
        own = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        names = ("dp_replicate", "dp_shard")
        return init_device_mesh(self.device.type, (self.world_size // own, own), mesh_dim_names=names)

    def _everybody(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (self.world_size,), mesh_dim_names=("dp_replicate",))

    def _precision(self) -> MixedPrecision | None:
        half = self.half
        if half is None:
            return None
        return MixedPrecision(
            param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False, cast_root_forward_inputs=False
        )

    def check(self, wrapped: nn.Module) -> None:
        """The wrapper has the strategy that was asked for; torch takes another one where there is one process."""
        if not isinstance(wrapped, FullyShardedDataParallel):
            raise RuntimeError(f"fsdp=True: the model became {type(wrapped).__name__}, which is not sharded")
        strategy, mesh = self._plan
        for module in FullyShardedDataParallel.fsdp_modules(wrapped):
            holders = dist.get_world_size(module.process_group)
            if mesh.size() > 1 and (module.sharding_strategy is not strategy or holders != mesh.size(-1)):
                raise RuntimeError(
                    f"fsdp_config: {strategy.name} over {mesh.size(-1)} processes was asked for, and torch made it "
                    f"{module.sharding_strategy.name} over {holders}"
                )

    def free(self, wrapped: nn.Module) -> None:
        """This version frees everything after each forward pass that has no backward pass."""

    def to_optimize(self, model: nn.Module, wrapped: nn.Module) -> nn.Module:
        """Flat parameters are the wrapper's; the model's own are known to both."""
        return model if self.config.use_orig_params else wrapped

    # ---- one update ----

    def accumulate(self, model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Reduce gradients in the last micro-batch of an update only; until then each process keeps them whole."""
        self.accelerator.gradient_state.sync_gradients = sync
        if sync or self.sync_each_batch or not isinstance(model, FullyShardedDataParallel):
            return contextlib.nullcontext()
        return model.no_sync()

    def grad_norm(self, parameters: Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
        """The total norm of the gradients over the processes that hold its pieces."""
        if self.scaler is not None:
            self.unscale()
        return norm_of_sharded(parameters, norm_type, self.device, self._holders())

    def _holders(self) -> dist.ProcessGroup | None:
        wrapped = None if self._placed is None else self._placed[1]
        strategy, mesh = self._plan
        whole = strategy is ShardingStrategy.NO_SHARD or mesh.size() == 1
        if whole or not isinstance(wrapped, FullyShardedDataParallel):
            return None
        return wrapped.process_group

    # ---- what a checkpoint holds ----

    def own_names(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Without the wrappers around units: adapters are saved by the names of their modules."""
        return _unwrapped(model)

    def load_whole_weights(self, model: nn.Module, folder: str) -> ckpt.LoadReport:
        """Every process reads the file into the gathered model, and keeps its pieces."""
        with FullyShardedDataParallel.summon_full_params(self._wrapped(model), writeback=True), _unwrapped(model):
            return ckpt.load_weights(model, folder)

    # ---- evaluation ----

    def generating(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """`generate` is no forward pass of the wrapper: what it holds itself is gathered; its units gather themselves."""
        wrapped = self.around(model)
        if wrapped is None:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = FullyShardedDataParallel.summon_full_params(
            wrapped, recurse=False, writeback=False
        )
        return context


@contextlib.contextmanager
def _unwrapped(model: nn.Module) -> Iterator[None]:
    """The model without the wrappers around its units, so that its tensors have the names that files know."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, FullyShardedDataParallel)
    ]
    for parent, name, child in places:
        parent._modules[name] = child.module
    try:
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child


class AgreeingScaler(ShardedGradScaler):
    """A loss scaler that skips a step everywhere when a piece of a gradient overflows on one process."""

    @classmethod
    def like(cls, scaler: torch.amp.GradScaler, device: torch.device) -> AgreeingScaler:
        """One of the same settings."""
        agreeing = cls(device=device.type)
        agreeing.load_state_dict(scaler.state_dict())
        return agreeing

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """As torch's, which notes on how many processes it found an overflow: fused optimizers skip the step for 1 only."""
        super().unscale_(optimizer)
        noted = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        noted.update({device: found.reshape(()).clamp(max=1.0) for device, found in noted.items()})
