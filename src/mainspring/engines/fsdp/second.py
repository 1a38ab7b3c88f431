"""FSDP in its second version: torch's `fully_shard`. Parameters stay themselves, as `DTensor`s."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from mainspring import checkpoint as ckpt
from mainspring.engines.dtensors import takes_whole_weights
from mainspring.engines.fsdp.engine import Sharded
from mainspring.engines.fsdp.norms import norm_of_sharded
from mainspring.engines.fsdp.weights import hand_out, weights_to_hand_out


class FSDP2(Sharded):
    """Every parameter is a `DTensor` over the mesh, and `model_wrapped` is the model itself."""

    is_fsdp2 = True

    # ---- the model ----

    def around(self, model: nn.Module) -> nn.Module | None:
        """The model itself, once it is sharded."""
        return model if isinstance(model, FSDPModule) else None

    def shard(self, model: nn.Module, units: list[nn.Module]) -> nn.Module:
        """Shard in place, each unit by itself, and hand the first process's weights out.

        So a model that only the first process has loaded is whole, and one that was drawn with different random numbers on
        each process is one model.
        """
        whole = weights_to_hand_out(model)
        self.divide_layers(model)
        for module in (*units, model):
            fully_shard(
                module,
                mesh=self.mesh,
                reshard_after_forward=self.config.strategy == "full_shard",
                mp_policy=self._precision(),
                offload_policy=self._offload(),
            )
        hand_out(model, whole, self.device, rests_on=torch.device("cpu") if self.config.cpu_offload else None)
        takes_whole_weights(model)
        if hasattr(model, "generate"):
            register_fsdp_forward_method(model, "generate")  # it calls parts of the model by themselves
        return model

    def divide_layers(self, model: nn.Module) -> None:
        """Divide layers among other processes than those that share the model, before it is sharded: none are here."""

    def _precision(self) -> MixedPrecisionPolicy:
        """Parameters are gathered and computed with in half precision; gradients are summed in fp32.

        Inputs are left to autocast: cast here, labels of a regression would be rounded too.
        """
        half = self.half
        if half is None:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def _offload(self) -> OffloadPolicy:
        # Pinning memory needs an accelerator to copy to; without one, torch raises at the first step.
        return CPUOffloadPolicy(pin_memory=self.device.type != "cpu") if self.config.cpu_offload else OffloadPolicy()

    def check(self, wrapped: nn.Module) -> None:
        """Every parameter is a `DTensor` over the mesh, and the model knows how to gather it."""
        if not isinstance(wrapped, FSDPModule):
            raise RuntimeError(f"fsdp=True: the model became {type(wrapped).__name__}, which is not sharded")
        for name, parameter in wrapped.named_parameters():
            mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
            if mesh is None or not _covers(mesh, self.mesh):
                what = "whole on every process" if mesh is None else f"sharded over {mesh.size()} of them"
                raise RuntimeError(f"fsdp=True over {self.mesh.size()} processes: the parameter {name} is {what}")

    def free(self, wrapped: nn.Module) -> None:
        """What is not freed after its forward pass waits for a backward pass, which evaluations do not have."""
        for module in wrapped.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    # ---- one update ----

    def accumulate(self, model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """Reduce gradients in the last micro-batch of an update only; until then each process keeps them whole.

        `sync_each_batch` reduces them in each, which takes less memory and more time.
        """
        self.accelerator.gradient_state.sync_gradients = sync
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(sync or self.sync_each_batch)
        return contextlib.nullcontext()

    def forget_gradients(self, model: nn.Module) -> None:
        """Also those that were not reduced yet, which no parameter shows."""
        for module in model.modules():
            if isinstance(module, FSDPModule):
                _forget_unreduced(module)

    def grad_norm(self, parameters: Iterable[Tensor], norm_type: float = 2.0) -> Tensor:
        """The total norm of the gradients over all processes."""
        if self.scaler is not None:
            self.unscale()
        return norm_of_sharded(parameters, norm_type, self.device)

    # ---- what a checkpoint holds ----

    def load_whole_weights(self, model: nn.Module, folder: str) -> ckpt.LoadReport:
        """Every process reads the file, which the system holds once, and keeps its pieces."""
        return ckpt.load_weights(model, folder)


def _covers(mesh: DeviceMesh, wanted: DeviceMesh) -> bool:
    """Whether a mesh has all the processes of another; with layers in pieces it has more."""
    return set(wanted.mesh.flatten().tolist()) <= set(mesh.mesh.flatten().tolist())


def _forget_unreduced(module: FSDPModule) -> None:
    # torch has no public way to drop what waits for a reduction that will not come.
    for group in module._get_fsdp_state()._fsdp_param_groups:
        for held in group.fsdp_params:
            held.unsharded_accumulated_grad = None
            if hasattr(held, "_unsharded_param"):
                held._unsharded_param.grad = None
