"""What `trainer.accelerator` is: an `accelerate.Accelerator` whose training verbs go to our engine.

Subclasses copy bodies that call `self.accelerator.backward(loss)` or `clip_grad_norm_`; whatever engine is in use,
these calls must mean what they say.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    GradientAccumulationPlugin,
    get_mixed_precision_context_manager,
    send_to_device,
)

from mainspring.arguments.accelerator_config import AcceleratorConfig
from mainspring.arguments.runtime import check_precision
from mainspring.data.shared import SharedLoader
from mainspring.engines.compilation import compilation
from mainspring.errors import OptionError, Problem

if TYPE_CHECKING:
    from mainspring.engines.base import SingleProcess


class MainspringAccelerator(Accelerator):
    """An `accelerate.Accelerator` bound to an engine; what the engine does not say, Accelerate does."""

    _engine: SingleProcess
    _precision: str
    _prepares = False

    @property
    def mixed_precision(self) -> str:
        """This run's precision; Accelerate's own state holds that of the newest run of the process."""
        return self._precision

    @property
    def parallelism_config(self) -> Any:
        """Accelerate's `ParallelismConfig` of this run; what Accelerate would hold without an engine of ours."""
        return self._engine.parallelism_config if hasattr(self, "_engine") else super().parallelism_config

    @property
    def torch_device_mesh(self) -> Any:
        """The mesh of devices of this run, by which Accelerate shares out loaders that it prepares; None: by process."""
        return self._engine.device_mesh if hasattr(self, "_engine") else super().torch_device_mesh

    @property
    def distributed_type(self) -> DistributedType:
        """How processes work together: what scripts ask to know whether the model is sharded.

        Not within what Accelerate would do by itself otherwise, with an engine of its own.
        """
        engine = getattr(self, "_engine", None)
        if engine is not None and engine.is_fsdp:
            return DistributedType.FSDP
        if engine is not None and engine.kind == "deepspeed":
            return PartialState().distributed_type if self._prepares else DistributedType.DEEPSPEED
        return super().distributed_type

    @property
    def is_fsdp2(self) -> bool:
        """Whether torch's `fully_shard` shards the model. Not within `prepare`, where Accelerate would shard it by itself."""
        engine = getattr(self, "_engine", None)
        return engine is not None and engine.is_fsdp2 and not self._prepares

    def prepare(self, *args: Any, device_placement: list[bool] | None = None) -> Any:
        """Prepare each object by itself: models go to `prepare_model`, alone or beside their optimizer."""
        with self._preparing():
            return super().prepare(*args, device_placement=device_placement)

    @contextlib.contextmanager
    def _preparing(self) -> Iterator[None]:
        before, self._prepares = self._prepares, True
        try:
            yield
        finally:
            self._prepares = before

    def get_state_dict(self, model: torch.nn.Module, unwrap: bool = True) -> Any:
        """The weights of a model, whole; of a sharded one on the main process, and {} elsewhere. All processes call it."""
        state = self._engine.model_state(self.unwrap_model(model))
        if state is not None:
            return state
        with self._preparing():
            return super().get_state_dict(model, unwrap)

    def show_deepspeed(self, plugin: Any) -> None:
        """Let scripts read that DeepSpeed trains the model, and how, as Accelerate would say it.

        Args:
            plugin: The configuration in the words of Accelerate's plugin.
        """
        shared = AcceleratorState._shared_state
        shared["distributed_type"], shared["deepspeed_plugins"] = DistributedType.DEEPSPEED, plugin
        self.native_amp = False
        self.scaler: Any = None  # the engine computes in its own precision, and scales

    def bind(self, engine: SingleProcess) -> None:
        """Let the training verbs go to `engine` from now on."""
        self._engine = engine

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Backpropagate `loss` (0-d), scaled for fp16 where a scaler is active."""
        self._engine.backward(self._engine.weighed(loss), **kwargs)

    def clip_grad_norm_(
        self, parameters: Iterable[torch.Tensor] | torch.Tensor, max_norm: float, norm_type: float = 2
    ) -> torch.Tensor:
        """Clip the gradients of `parameters` to a total norm of `max_norm`; returns the norm before clipping."""
        tensors = [parameters] if isinstance(parameters, torch.Tensor) else parameters
        return self._engine.clip_grad_norm(tensors, max_norm, norm_type)

    def unscale_gradients(self, optimizer: Any = None) -> None:
        """Divide the gradients by the loss scale once per update; nothing to do without a scaler."""
        self._engine.unscale(optimizer)

    def prepare_model(
        self, model: torch.nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False
    ) -> torch.nn.Module:
        """Place `model` and, for training, wrap it as the engine does; `prepare` comes here for every module."""
        if not evaluation_mode:
            return self._engine.prepare(model)
        with self._its_own_precision():
            placed: torch.nn.Module = super().prepare_model(model, device_placement, evaluation_mode=True)
        return placed

    @contextlib.contextmanager
    def autocast(self, autocast_handler: Any = None) -> Iterator[None]:
        """The precision of this run, for computations outside the model's forward pass."""
        with self._its_own_precision():
            context = get_mixed_precision_context_manager(self.native_amp, autocast_handler or self.autocast_handler)
        with context:
            yield

    @contextlib.contextmanager
    def _its_own_precision(self) -> Iterator[None]:
        """Accelerate computes in what the newest run of the process has chosen: let that be this run's for now."""
        state = AcceleratorState._shared_state
        found = state.get("_mixed_precision", self._precision)
        state["_mixed_precision"] = self._precision
        try:
            yield
        finally:
            state["_mixed_precision"] = found

    def prepare_data_loader(
        self, data_loader: Any, device_placement: bool | None = None, slice_fn_for_dispatch: Any = None
    ) -> Any:
        """Share out a loader; one of ours is shared already, and comes back with its batches on the device."""
        prepared = super().prepare_data_loader(data_loader, device_placement, slice_fn_for_dispatch)
        placed = self.device_placement if device_placement is None else device_placement
        if isinstance(prepared, SharedLoader) and placed:
            prepared.place = functools.partial(send_to_device, device=self.device, non_blocking=self.non_blocking)
        return prepared

    @contextlib.contextmanager
    def accumulate(self, *models: torch.nn.Module) -> Any:
        """A micro-batch of the update in progress: whether it synchronises is what the training loop says."""
        with contextlib.ExitStack() as contexts:
            for model in models:
                contexts.enter_context(self._engine.accumulate(model, self.sync_gradients))
            yield

    @contextlib.contextmanager
    def no_sync(self, model: torch.nn.Module) -> Any:
        """Keep this backward's gradients local: they are reduced by the next one outside the context."""
        with self._engine.accumulate(model, sync=False):
            yield

    def gather(self, tensor: Any) -> Any:
        """The tensors of all processes that read different data, one after another along dimension 0."""
        divided = self._engine.data_world_size < self.num_processes
        return self._engine.gather(tensor) if divided else super().gather(tensor)

    def gather_for_metrics(self, input_data: Any, use_gather_object: bool = False) -> Any:
        """Gather over processes, without the samples that only filled up the last batch."""
        if self.num_processes == 1 and not use_gather_object and not self.gradient_state.end_of_dataloader:
            return input_data
        gathered = self._engine.gather_rows(input_data, use_gather_object)
        if gathered is None:
            return super().gather_for_metrics(input_data, use_gather_object=use_gather_object)
        return gathered

    @property
    def optimizer_step_was_skipped(self) -> bool:
        """Whether the last optimizer step was left out because fp16 gradients overflowed."""
        return self._engine.step_was_skipped


def build_accelerator(
    *,
    cpu: bool,
    mixed_precision: str,
    compile_backend: str | None = None,
    compile_mode: str | None = None,
    data_seed: int | None = None,
    settings: AcceleratorConfig | None = None,
    kwargs_handlers: list[Any] | None = None,
) -> MainspringAccelerator:
    """Build the accelerator of a run.

    Args:
        cpu: Whether to stay on the CPU although an accelerator is there.
        mixed_precision: "no", "bf16" or "fp16".
        compile_backend: Backend of `torch.compile`, or None to leave the model uncompiled.
        compile_mode: Mode of `torch.compile`.
        data_seed: Seed of the order in loaders that the user prepares through Accelerate.
        settings: How Accelerate shares out such loaders, and accumulates what a script accumulates by itself.
        kwargs_handlers: Accelerate's own keyword handlers.

    Raises:
        OptionError: fp16 is asked for on a CPU that does not compute in it.
    """
    settings = settings or AcceleratorConfig()
    if settings.use_configured_state:
        _check_precision(mixed_precision)
    else:  # Accelerate keeps one precision per process; a second trainer with another one is a fresh start here.
        AcceleratorState._reset_state()
    with _without("ACCELERATE_USE_FSDP"):  # our engine shards; Accelerate would prepare to do so, and refuses the CPU
        accelerator = MainspringAccelerator(
            cpu=cpu,
            mixed_precision=mixed_precision,
            dynamo_plugin=compilation(compile_backend, compile_mode),
            # The loop accumulates by itself: Accelerate must not divide the loss a second time.
            gradient_accumulation_plugin=_accumulation(settings),
            dataloader_config=_loader_configuration(settings, data_seed),
            kwargs_handlers=kwargs_handlers,
        )
    accelerator._precision = mixed_precision
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        _compute_in_fp16(accelerator)
    return accelerator


def _compute_in_fp16(accelerator: MainspringAccelerator) -> None:
    """Let the CPU compute in float16, and scale losses: Accelerate by itself would train in float32 without a word."""
    check_precision(mixed_precision="fp16", tf32=None, device_type="cpu")
    scaling = accelerator.scaler_handler
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", **({} if scaling is None else scaling.to_kwargs()))


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """A variable of the environment is not there for now."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _loader_configuration(settings: AcceleratorConfig, data_seed: int | None) -> DataLoaderConfiguration:
    configuration = DataLoaderConfiguration(
        split_batches=settings.split_batches,
        dispatch_batches=settings.dispatch_batches,
        even_batches=settings.even_batches,
        use_seedable_sampler=settings.use_seedable_sampler,
    )
    configuration.non_blocking = settings.non_blocking
    configuration.data_seed = data_seed
    return configuration


def _accumulation(settings: AcceleratorConfig) -> GradientAccumulationPlugin:
    given = {name: value for name, value in (settings.gradient_accumulation_kwargs or {}).items() if value is not None}
    return GradientAccumulationPlugin(**{**given, "num_steps": 1})


def _check_precision(mixed_precision: str) -> None:
    """A state that a script made before keeps its precision."""
    found = AcceleratorState._shared_state.get("_mixed_precision")
    if found is not None and found != mixed_precision:
        why = (
            f"the state that was made before has mixed_precision={found!r}, and the options ask for {mixed_precision!r}"
        )
        fix = "give both the same precision, or leave it out"
        raise OptionError([Problem("accelerator_config", {"use_configured_state": True}, why, fix)])
