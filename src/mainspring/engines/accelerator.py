"""What `trainer.accelerator` is: an `accelerate.Accelerator` whose training verbs go to our engine.

Subclasses copy bodies that call `self.accelerator.backward(loss)` or `clip_grad_norm_`; whatever engine is in use,
these calls must mean what they say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, TorchDynamoPlugin

if TYPE_CHECKING:
    from mainspring.engines.base import SingleProcess


class MainspringAccelerator(Accelerator):
    """An `accelerate.Accelerator` bound to an engine; what the engine does not say, Accelerate does."""

    _engine: SingleProcess
    _precision: str

    @property
    def mixed_precision(self) -> str:
        """This run's precision; Accelerate's own state holds that of the newest run of the process."""
        return self._precision

    def bind(self, engine: SingleProcess) -> None:
        """Let the training verbs go to `engine` from now on."""
        self._engine = engine

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Backpropagate `loss` (0-d), scaled for fp16 where a scaler is active."""
        self._engine.backward(loss, **kwargs)

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
        if evaluation_mode:
            placed: torch.nn.Module = super().prepare_model(model, device_placement, evaluation_mode=True)
            return placed
        return self._engine.prepare(model)

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
    kwargs_handlers: list[Any] | None = None,
) -> MainspringAccelerator:
    """Build the accelerator of a run.

    Args:
        cpu: Whether to stay on the CPU although an accelerator is there.
        mixed_precision: "no", "bf16" or "fp16".
        compile_backend: Backend of `torch.compile`, or None to leave the model uncompiled.
        compile_mode: Mode of `torch.compile`.
        data_seed: Seed of the order in loaders that the user prepares through Accelerate.
        kwargs_handlers: Accelerate's own keyword handlers.

    Raises:
        ValueError: fp16 is asked for on the CPU, where Accelerate would silently train in fp32.
    """
    # Accelerate keeps one precision per process; a second trainer with another one is a fresh start here.
    AcceleratorState._reset_state()
    loader_configuration = DataLoaderConfiguration(use_seedable_sampler=True)
    loader_configuration.data_seed = data_seed
    accelerator = MainspringAccelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        dynamo_plugin=TorchDynamoPlugin(backend=compile_backend or "no", mode=compile_mode or "default"),
        # The loop accumulates by itself: Accelerate must not divide the loss a second time.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dataloader_config=loader_configuration,
        kwargs_handlers=kwargs_handlers,
    )
    accelerator._precision = mixed_precision
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fp16=True needs a GPU, and this run is on the CPU: use bf16=True, or drop the option")
    return accelerator
