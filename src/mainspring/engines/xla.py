"""PyTorch/XLA: TPUs, one process for each device; the model whole on each, or sharded by XLA's own FSDP.

None of this has been run: the package needs a machine of that kind. The tests call it with stand-ins for the package's
functions, which shows what is called and in which order, and no more.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from mainspring import checkpoint as ckpt
from mainspring.engines.base import EngineOptions, SingleProcess
from mainspring.errors import NotAvailableError, Problem
from mainspring.state import CONTROL_FLAGS, TrainerControl

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from mainspring.arguments.fsdp_config import FSDPConfig
    from mainspring.engines.accelerator import MainspringAccelerator


class XLA(SingleProcess):
    """One process per XLA device. Gradients are summed before they are first looked at in an update."""

    kind = "xla"
    replaces_parameters = True

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        self._model = _module("core.xla_model", options)
        super().__init__(accelerator, options)
        self.saves_shards = options.fsdp is not None and not options.fsdp.xla_fsdp_v2
        self._is_reduced = False
        self._wrapped: nn.Module | None = None
        self._mesh = _mesh(options) if options.fsdp is not None and options.fsdp.xla_fsdp_v2 else None

    # ---- the model ----

    def prepare(self, model: nn.Module) -> nn.Module:
        """Place `model`, and shard it where `fsdp` says so."""
        placed = self.place(model)
        fsdp = self.options.fsdp
        if fsdp is None:
            return placed
        if self._mesh is not None:
            self._wrapped = _partitioned(placed, self._mesh, _policy(placed, fsdp))
        else:
            self._wrapped = _sharded(placed, fsdp)
        return self._wrapped

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` on the device; with FSDP of version 2, a batch is divided over all devices by its rows."""
        placed = super().to_device(tensor)
        if self._mesh is not None and placed.dim() > 0:
            axes = ("fsdp", *[None] * (placed.dim() - 1))
            _module("distributed.spmd").mark_sharding(placed, self._mesh, axes)
        return placed

    # ---- one update ----

    def clip_grad_norm(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
    ) -> torch.Tensor:
        """Clip to a total norm of `max_norm`; XLA's FSDP knows the norm over all shards."""
        self._reduce()
        if self.saves_shards:
            assert self._wrapped is not None
            norm: torch.Tensor = self._wrapped.clip_grad_norm_(max_norm, norm_type)  # type: ignore[operator]
            return norm
        return super().clip_grad_norm(parameters, max_norm, norm_type)

    def grad_norm(self, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
        """The total norm of the gradients, which stay as they are."""
        if self.saves_shards:
            return self.clip_grad_norm(parameters, float("inf"))
        self._reduce()
        return super().grad_norm(parameters)

    def step(self, optimizer: Optimizer) -> None:
        """One optimizer step, and the mark that lets XLA compute what has been collected."""
        self._reduce()
        super().step(optimizer)
        self._model.mark_step()
        self._is_reduced = False

    def _reduce(self) -> None:
        """Average the gradients over the processes, once per update; FSDP does so by itself."""
        if self.options.fsdp is None and self.world_size > 1 and not self._is_reduced:
            self._model.reduce_gradients(getattr(self.optimizer, "optimizer", self.optimizer))
            self._is_reduced = True

    def why_not_watched(self) -> str | None:
        """FSDP's pieces are not the model's weights; without it every process has them whole."""
        return None if self.options.fsdp is None else super().why_not_watched()

    def compiler_metrics(self) -> str | None:
        """XLA's counters: what was compiled, moved and waited for."""
        return str(_module("debug.metrics").metrics_report())

    # ---- what a checkpoint holds ----

    def model_state(self, model: nn.Module) -> dict[str, Any] | None:
        """All weights, on the host."""
        self._model.mark_step()
        state: dict[str, Any] = _on_host(model.state_dict())
        return state

    def save_shards(self, model: nn.Module, folder: str) -> None:
        """Each process writes its own shards, and what joins them again."""
        assert self._wrapped is not None
        state = {"model": self._wrapped.state_dict(), "shard_metadata": self._wrapped.get_shard_metadata()}  # type: ignore[operator]
        self._model.mark_step()
        ckpt.save_torch(_on_host(state), os.path.join(folder, self._name("pytorch_model.pth")))

    def load_weights(self, model: nn.Module, folder: str) -> ckpt.LoadReport:
        """Load the weights; shards into the processes that wrote them."""
        if not self.saves_shards or self._wrapped is None:
            return super().load_weights(model, folder)
        file = ckpt.Contents.of(folder).file(self._name("pytorch_model.pth"))
        if file is None:
            raise ckpt.CheckpointError(
                f"{folder} has no shards of process {self.rank} of {self.world_size}: XLA's shards are read by as many "
                "processes as wrote them"
            )
        self._wrapped.load_state_dict(ckpt.load_torch(file)["model"])
        return ckpt.LoadReport()

    def save_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str, writes: bool) -> None:
        """Write the optimizer's state: of each process's shards, or the one that all have."""
        if writes or self.saves_shards:
            self._model.mark_step()
            name = self._name("optimizer.pt") if self.saves_shards else ckpt.OPTIMIZER_NAME
            ckpt.save_torch(_on_host(optimizer.state_dict()), os.path.join(folder, name))

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str) -> bool:
        """Load the optimizer's state; False where the checkpoint has none."""
        if not self.saves_shards:
            return super().load_optimizer(model, optimizer, folder)
        file = ckpt.Contents.of(folder).file(self._name("optimizer.pt"))
        if file is not None:
            optimizer.load_state_dict(ckpt.load_torch(file))
        return file is not None

    def _name(self, what: str) -> str:
        """The reference's name of one process's file."""
        return f"rank{self.rank}-of-{self.world_size}-{what}"

    # ---- between processes ----

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a 0-d tensor over all processes, on the host."""
        return float(self.sum(value.detach().float()).item()) / self.world_size

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the device; `value` stays as it is."""
        if self.world_size == 1:
            return value
        total: torch.Tensor = self._model.all_reduce("sum", value.detach().clone().to(self.device))
        return total

    def share(self, value: Any, source: int = 0) -> Any:
        """The `value` of the process `source`."""
        return self._model.mesh_reduce("mainspring.share", value, lambda every: every[source])

    def every(self, value: Any) -> list[Any]:
        """The values of all processes."""
        return list(self._model.mesh_reduce("mainspring.every", value, list))

    def each(self, numbers: Sequence[int]) -> list[list[int]]:
        """A few whole numbers of every process."""
        return self.every(list(numbers))

    def pass_on(self, value: Any, source: int) -> Any:
        """The `value` of the process `source`."""
        return self.share(value, source)

    def channel(self) -> None:
        """None with one process. Several have no way to meet but the device's, where a thread would be in the way.

        Raises:
            NotAvailableError: There are several.
        """
        self._refuse_channel("save_in_background", True, "leave it out: the run waits while a checkpoint is written")

    def data_channel(self) -> None:
        """As `channel`; one process would read for all and send through it."""
        fix = "leave it out: each process reads its own share"
        self._refuse_channel("accelerator_config", {"dispatch_batches": True}, fix)

    def _refuse_channel(self, option: str, value: object, fix: str) -> None:
        if self.world_size > 1:
            why = "XLA's processes have no channel of their own beside the device's"
            raise NotAvailableError([Problem(option, value, why, fix)])

    def barrier(self) -> None:
        """Wait for all processes."""
        self._model.rendezvous("mainspring.barrier")

    def any(self, flag: bool) -> bool:
        """Whether any process's flag is set."""
        return bool(self._model.mesh_reduce("mainspring.any", flag, any))

    def agree(self, wish: bool) -> bool:
        """Whether any process wishes it: asked at once, since there is no channel beside the device's."""
        return self.any(wish)

    def same_buffers(self, model: nn.Module) -> None:
        """Those of the first process, on all."""
        for buffer in model.buffers():
            buffer.copy_(self.share(buffer.cpu()))

    def settle(self, control: TrainerControl) -> None:
        """Leave in `control` what any process asks for: asked at once, too."""
        wishes = self.every([getattr(control, flag) for flag in CONTROL_FLAGS])
        for flag, every in zip(CONTROL_FLAGS, zip(*wishes, strict=True), strict=True):
            setattr(control, flag, any(every))


def _module(name: str, options: EngineOptions | None = None) -> Any:
    """A module of torch_xla.

    Raises:
        NotAvailableError: It is not installed.
    """
    try:
        return importlib.import_module(f"torch_xla.{name}")
    except ImportError as error:
        asked = options is not None and options.fsdp is not None
        option, value = ("fsdp_config", {"xla": True}) if asked else ("device", "xla")
        fix = "install torch_xla on a machine with TPUs" + (", or leave xla out of fsdp_config" if asked else "")
        raise NotAvailableError([Problem(option, value, "PyTorch/XLA is not installed", fix)]) from error


def _on_host(state: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, state)


def _policy(model: nn.Module, fsdp: FSDPConfig) -> Any:
    """Which modules are units of their own, as XLA's wrappers ask; None: only the whole model."""
    wrap = _module("distributed.fsdp.wrap")
    if fsdp.auto_wrap_policy == "SIZE_BASED_WRAP":
        return functools.partial(wrap.size_based_auto_wrap_policy, min_num_params=fsdp.min_num_params)
    if fsdp.auto_wrap_policy == "NO_WRAP":
        return None
    names = fsdp.transformer_layer_cls_to_wrap or tuple(getattr(model, "_no_split_modules", None) or ())
    layers = {type(module) for module in model.modules() if type(module).__name__ in names}
    if not layers:
        why = (
            f"the model has no layer called {' or '.join(names)}"
            if names
            else "the model does not say what its layers are"
        )
        fix = "set transformer_layer_cls_to_wrap to the names of its layers' classes, or auto_wrap_policy to NO_WRAP"
        raise NotAvailableError([Problem("fsdp_config", {"auto_wrap_policy": fsdp.auto_wrap_policy}, why, fix)])
    return functools.partial(wrap.transformer_auto_wrap_policy, transformer_layer_cls=layers)


def _sharded(model: nn.Module, fsdp: FSDPConfig) -> nn.Module:
    """The model in XLA's `FullyShardedDataParallel`; wrapped layers recompute their activations if that is wanted."""
    wrapper = _module("distributed.fsdp").XlaFullyShardedDataParallel
    recomputed = _module("distributed.fsdp").checkpoint_module if fsdp.xla_fsdp_grad_ckpt else None

    def wrap(layer: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        unit: nn.Module = wrapper(layer if recomputed is None else recomputed(layer), *args, **kwargs)
        return unit

    whole: nn.Module = wrapper(
        model, auto_wrap_policy=_policy(model, fsdp), auto_wrapper_callable=wrap, **fsdp.xla_fsdp_settings
    )
    return whole


def _partitioned(model: nn.Module, mesh: Any, policy: Any) -> nn.Module:
    """The model in XLA's FSDP of version 2, for which the compiler divides all computation over one mesh."""
    spmd = _module("distributed.spmd")

    def shard_output(output: Any, mesh: Any) -> None:
        first = (
            output
            if isinstance(output, torch.Tensor)
            else next(iter(output.values() if hasattr(output, "values") else output))
        )
        if isinstance(first, torch.Tensor) and first.dim() > 0:
            spmd.mark_sharding(first, mesh, ("fsdp", *[None] * (first.dim() - 1)))

    wrapper = _module("experimental.spmd_fully_sharded_data_parallel").SpmdFullyShardedDataParallel
    whole: nn.Module = wrapper(model, mesh=mesh, shard_output=shard_output, auto_wrap_policy=policy)
    return whole


def _mesh(options: EngineOptions) -> Any:
    """All devices in one line, over which version 2 divides rows and parameters."""
    runtime, spmd = _module("runtime", options), _module("distributed.spmd", options)
    count = runtime.global_runtime_device_count()
    return spmd.Mesh(list(range(count)), (count, 1), axis_names=("fsdp", "tensor"))
