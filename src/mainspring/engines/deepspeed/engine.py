"""DeepSpeed: model, optimizer and schedule are set up in one call, and its engine computes, reduces, clips and steps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mainspring import checkpoint as ckpt
from mainspring.engines.base import EngineOptions
from mainspring.engines.deepspeed import states
from mainspring.engines.deepspeed.parts import FromConfiguration, MovedByEngine
from mainspring.engines.deepspeed.starting import import_deepspeed, join
from mainspring.engines.processes import Processes, refuse_frozen

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from mainspring.engines.accelerator import MainspringAccelerator

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class DeepSpeed(Processes):
    """ZeRO divides optimizer states, gradients and parameters over the processes, as its stage says.

    Attributes:
        settings: The configuration.
        deepspeed: The `DeepSpeedEngine`, once model, optimizer and schedule are joined; users read it as
            `trainer.deepspeed`.
    """

    kind = "deepspeed"
    replaces_parameters = True
    joins_optimizer = True

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        join(accelerator.device)
        super().__init__(accelerator, options)
        assert options.deepspeed is not None
        self.settings = options.deepspeed
        self.deepspeed: Any = None
        self.saves_shards = self.settings.stage == 3 and not self.settings.gathers_weights
        self._norm: Tensor | None = None
        self._loaded: str | None = None

    # ---- the model ----

    def own_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer | None:
        """What stands for the configuration's optimizer, where it has one."""
        return FromConfiguration(groups) if self.settings.makes_optimizer else None

    def join(
        self, model: nn.Module, optimizer: Optimizer, schedule: Any, steps: tuple[int, int]
    ) -> tuple[Any, Any, Any]:
        """Set up model, optimizer and schedule together.

        Args:
            model: The model.
            optimizer: The run's optimizer, or what stands for the configuration's.
            schedule: The run's schedule; None where the configuration has one.
            steps: Updates of the run, and those of them that warm up.

        Returns:
            What forward passes go through, the optimizer, and the schedule.
        """
        refuse_frozen(model)
        config = self.settings.completed(hidden_size(model), *steps)
        described = isinstance(optimizer, FromConfiguration)
        engine, stepped, _, moved = import_deepspeed().initialize(
            model=model,
            optimizer=None if described else optimizer,
            model_parameters=optimizer.param_groups if described else None,
            config=config,
        )
        self.deepspeed = engine
        self._placed = (model, engine)
        return engine, stepped, schedule if moved is None else MovedByEngine(moved)

    def place(self, model: nn.Module) -> nn.Module:
        """What forward passes go through; without training, the model itself."""
        return super().place(model)

    def prepare(self, model: nn.Module) -> nn.Module:
        """As `place`: training goes through `join`."""
        return self.place(model)

    def to_device(self, tensor: Tensor) -> Tensor:
        """On the device, floating-point numbers in what the model computes in."""
        half = _HALVES.get(self.settings.precision) if tensor.is_floating_point() else None
        moved = super().to_device(tensor)
        return moved if half is None else moved.to(half)

    # ---- one update ----

    def accumulate(self, model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """The last micro-batch of an update completes its gradients."""
        self.accelerator.gradient_state.sync_gradients = sync
        if self.deepspeed is not None:
            self.deepspeed.set_gradient_accumulation_boundary(sync)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Backpropagate `loss`, a scalar, which is a part of its update already."""
        self.deepspeed.backward(loss, scale_wrt_gas=False, **kwargs)

    def clip_grad_norm(self, parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
        """DeepSpeed clips when it steps; the norm is filled in then."""
        return self.grad_norm(parameters)

    def grad_norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """The norm of gradients that lie here whole; else a number that the coming step fills in, as only DeepSpeed has
        all pieces of them.
        """
        if not hasattr(self.deepspeed.optimizer, "_global_grad_norm"):
            return super().grad_norm(parameters)
        if self._norm is None:
            self._norm = torch.full((), float("nan"), device=self.device)
        return self._norm

    def step(self, optimizer: Optimizer) -> None:
        """One step of DeepSpeed's, which leaves it out where fp16 overflowed."""
        self.deepspeed.step()
        self.step_was_skipped = not self.deepspeed.was_step_applied()
        norm, self._norm = self._norm, None
        found = self.deepspeed.get_global_grad_norm()
        if norm is not None and found is not None:
            norm.fill_(float(found))

    # ---- what a checkpoint holds ----

    def tensors_of(self, model: nn.Module) -> dict[str, Any]:
        """This process's parts."""
        return {name: getattr(p, "ds_tensor", p).detach() for name, p in model.named_parameters()}

    def model_state(self, model: nn.Module) -> dict[str, Any] | None:
        """All weights by name on the first process, {} on the others; None where each process has them."""
        if self.deepspeed is None or self.settings.stage < 3:
            return None
        return states.whole_weights(self.deepspeed)

    def save_shards(self, model: nn.Module, folder: str) -> None:
        """The pieces are saved with the optimizer's."""

    def save_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str, writes: bool) -> None:
        """Write DeepSpeed's own checkpoint: the pieces of weights, optimizer and schedule."""
        self.deepspeed.save_checkpoint(folder)

    def load_weights(self, model: nn.Module, folder: str) -> ckpt.LoadReport:
        """Load a checkpoint's weights; of DeepSpeed's own, all that it holds."""
        if self.deepspeed is None or not os.path.exists(os.path.join(folder, "latest")):
            return super().load_weights(model, folder)
        states.load(self.deepspeed, folder)
        self._loaded = folder
        return ckpt.LoadReport()

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str) -> bool:
        """It came with the weights."""
        return self._loaded == folder


def hidden_size(model: nn.Module) -> int | None:
    """The model's hidden size by its configuration, the largest of several; None where it does not say."""
    config = getattr(model, "config", None)
    for place in (config, getattr(config, "text_config", None)):
        if (size := getattr(place, "hidden_size", None)) is not None:
            return int(size)
        if sizes := getattr(place, "hidden_sizes", None):
            return int(max(sizes))
    return None
