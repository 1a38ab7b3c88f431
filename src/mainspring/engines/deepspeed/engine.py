"""DeepSpeed: model, optimizer and schedule are set up in one call, and its engine computes, reduces, clips and steps."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mainspring import checkpoint as ckpt
from mainspring.arguments.deepspeed.filling import Run
from mainspring.arguments.deepspeed.hf import DeepSpeedPlugin, HfTrainerDeepSpeedConfig, hidden_size
from mainspring.arguments.deepspeed.shown import table
from mainspring.engines.base import EngineOptions
from mainspring.engines.compilation import VaryingSizes
from mainspring.engines.deepspeed import memory, states, tensor_parallel
from mainspring.engines.deepspeed.adopting import adopt_optimizer, adopt_weights, mend_universal
from mainspring.engines.deepspeed.divided import gathered, refuse_other_stages, refuse_uninitialised, whole_adapters
from mainspring.engines.deepspeed.files import save_pieces
from mainspring.engines.deepspeed.gradients import forget_gradients, forget_sums, norm_before_step
from mainspring.engines.deepspeed.leaving import Leaving, take_from_others
from mainspring.engines.deepspeed.limits import (
    check_evaluation,
    check_given,
    check_precision,
    check_sums,
    makes_other_norms,
    refuse_without_training,
    say_what_rests,
    say_what_stays,
    say_where_not_clipped,
    warn_of_flattened,
)
from mainspring.engines.deepspeed.on_host import check_device, check_ways
from mainspring.engines.deepspeed.parts import FromConfiguration, MovedByEngine, SteppedByEngine
from mainspring.engines.deepspeed.reading import Reading
from mainspring.engines.deepspeed.scaling import LossScale
from mainspring.engines.deepspeed.sharing import Sharing
from mainspring.engines.deepspeed.starting import begin_schedule, join, processes_here, start, start_inference
from mainspring.engines.processes import refuse_frozen
from mainspring.model import is_peft

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from mainspring.arguments.deepspeed import DeepSpeedSettings
    from mainspring.engines.accelerator import MainspringAccelerator

logger = logging.getLogger(__name__)

_IN_PIECES = (
    "what is saved holds the weights in pieces, one for each process: `mainspring export` makes whole ones of such a folder, and "
    "so does its zero_to_fp32.py; stage3_gather_16bit_weights_on_model_save=true saves them whole from the beginning"
)
_COMPUTES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _plugin(settings: DeepSpeedSettings) -> DeepSpeedPlugin:
    """The configuration as scripts read it, which follows what it comes to."""
    return DeepSpeedPlugin(settings.published or HfTrainerDeepSpeedConfig.of_arguments(settings.config))


class DeepSpeed(Sharing):
    """ZeRO divides optimizer states, gradients and parameters over the processes, as its stage says.

    Attributes:
        settings: The configuration.
    """

    kind = "deepspeed"
    replaces_parameters = True
    joins_optimizer = True

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        assert options.deepspeed is not None
        check_ways(options.parallelism)
        check_device(options.deepspeed.config, accelerator.device)
        join(accelerator.device)
        super().__init__(accelerator, options)
        self.settings = options.deepspeed
        accelerator.show_deepspeed(_plugin(self.settings))
        self.scaler = None
        self.saves_shards = self.settings.stage == 3 and not self.settings.gathers_weights
        self.keeps_schedule = self.settings.makes_schedule
        self.brings_steps = self.settings.makes_schedule or self.settings.makes_optimizer
        self._schedule: MovedByEngine | None = None
        self._leaving: Leaving | None = None
        self._reading: Reading | None = None
        self._has_norm = True
        self._norm: Tensor | None = None
        self._loaded: str | None = None
        self._stepped: SteppedByEngine | None = None
        self._scale: LossScale | None = None
        self._started: dict[str, Any] = {}
        self._told_of_pieces = False
        self._saved_to: str | None = None

    # ---- the model ----

    def own_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer | None:
        """What stands for the configuration's optimizer, where it has one."""
        if not self.settings.makes_optimizer:
            return None
        rate = (self.settings.config["optimizer"].get("params") or {}).get("lr")
        return FromConfiguration(groups, rate)

    def check_given(self, optimizer: Any, schedule: Any, evaluates_in: torch.dtype | None) -> None:
        """Refuse a second optimizer or schedule beside the configuration's, and a second precision."""
        check_precision(self.settings)
        check_sums(self.settings)
        check_given(self.settings, optimizer, schedule)
        check_evaluation(self.settings, evaluates_in)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that was divided before its weights had been initialised, or for another stage."""
        super().check_model(model)
        refuse_uninitialised(model)
        refuse_other_stages(model, self.settings.stage)

    def halved(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The model as it is: it computes in `dtype` already, see `check_given`."""
        return model

    def join(self, model: nn.Module, optimizer: Optimizer, steps: tuple[int, int]) -> tuple[Any, Any, Any]:
        """Set up model, optimizer and schedule together; a model that was trained before goes on with what it has.

        Args:
            model: The model.
            optimizer: The run's optimizer, or what stands for the configuration's.
            steps: Updates of the run, and those of them that warm up.

        Returns:
            What forward passes go through, the optimizer, and the schedule; None: the configuration has none.
        """
        refuse_frozen(model)
        if self.is_placed(model):
            self._check_trainable()
        config = self.settings.completed(hidden_size(model), *steps)
        if isinstance(optimizer, SteppedByEngine) and optimizer.engine is self.deepspeed:
            self._go_on(config)
            own = optimizer
        else:
            own = self._begin(model, optimizer, config)
        moved = self.deepspeed.lr_scheduler
        self._schedule = None if moved is None else MovedByEngine(moved)
        self._loaded, self._stepped = None, own
        return self.deepspeed, own, self._schedule

    def _begin(self, model: nn.Module, optimizer: Optimizer, config: dict[str, Any]) -> SteppedByEngine:
        """Start an engine, which takes the optimizer over."""
        self._leave(model)
        self._started = copy.deepcopy(config)
        members = [list(group["params"]) for group in optimizer.param_groups if group["params"]]
        own = SteppedByEngine(start(model, optimizer, config), members)
        self._hold(model, own.engine)
        self._has_norm = not makes_other_norms(own.inner, self.settings)
        warn_of_flattened(own.inner, self.settings)
        self._scale = LossScale(own.engine.optimizer) if self.mends_gradients else None
        return own

    def _go_on(self, config: dict[str, Any]) -> None:
        """Train again with the engine of the run before, which may have ended inside an update."""
        forget_gradients(self.deepspeed)
        say_what_stays(self._started, config)
        if self.keeps_schedule:
            begin_schedule(self.deepspeed, config)

    def _leave(self, model: nn.Module) -> None:
        """Take the engine of an evaluation, of another model, or of another trainer of this one, apart."""
        take_from_others(model, self._leaving)
        if self.deepspeed is not None:
            self._check_kept()
            self.deepspeed.module._compiled_call_impl = None
            self.deepspeed.destroy()
            self.deepspeed = self._stepped = None

    def _hold(self, model: nn.Module, engine: Any) -> None:
        self.deepspeed = engine
        self._placed = (model, engine)
        if self.options.compiles:
            self._compile(engine)
        if self._leaving is not None:
            self._leaving.forget()
        has_copies = self.settings.stage > 0 or self.settings.precision != "fp32"
        self._leaving = Leaving(model, engine, has_copies)
        if self._reading is not None:
            self._reading.forget()
        self._reading = Reading(model, engine) if self.settings.stage == 3 or self.divides_layers else None

    def _compile(self, engine: Any) -> None:
        """Compile the model inside the engine, which gathers and reduces around it."""
        keywords = self.accelerator.state.dynamo_plugin.to_kwargs()
        engine.compile(backend=keywords.pop("backend"), compile_kwargs=keywords)
        engine.register_forward_pre_hook(VaryingSizes(), with_kwargs=True)

    def _check_kept(self) -> None:
        if self._leaving is not None:
            self._leaving.check()

    def _check_trainable(self) -> None:
        if self._leaving is not None:
            self._leaving.check_trainable()

    def place(self, model: nn.Module) -> nn.Module:
        """What forward passes go through: without training, stage 3 divides the weights, and no other can do anything."""
        if not self.is_placed(model):
            refuse_without_training(self.settings)
            say_what_rests(self.settings)
            self._leave(model)
            self._hold(model, start_inference(model, self.settings.for_evaluation(hidden_size(model))))
        self._check_kept()
        assert self._placed is not None
        return self._placed[1]

    def prepare(self, model: nn.Module) -> nn.Module:
        """As `place`: training goes through `join`."""
        return self.place(model)

    def generating(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Stage 3 gathers weights where a module is called, whoever calls it."""
        self.place(model)
        return contextlib.nullcontext()

    def whole(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """All weights of a model that came in pieces, gathered on each process."""
        take_from_others(model, self._leaving)
        return gathered(model)

    def to_device(self, tensor: Tensor) -> Tensor:
        """On the device, floating-point numbers in what the model computes in: labels too, as in the reference."""
        moved = super().to_device(tensor)
        return moved.to(_COMPUTES[self.settings.precision]) if tensor.is_floating_point() else moved

    # ---- its configuration ----

    def read_options_again(self, options: EngineOptions) -> None:
        """Take over the configuration as the options fill it in now; it acts from the next `train` on."""
        assert options.deepspeed is not None
        self.settings = options.deepspeed
        self.saves_shards = self.settings.stage == 3 and not self.settings.gathers_weights

    def explained(self, model: nn.Module, steps: tuple[int, int]) -> str:
        """The configuration that training starts with, each value with where it came from."""
        return table(self.settings.at(Run(hidden_size(model), *steps)))

    def reckoned_memory(self, model: nn.Module, optimizer: Any, state_per_number: Callable[[], float]) -> Any:
        """What each process keeps, and what DeepSpeed's estimators say: no engine is started."""
        if self.divides_layers:
            tensor_parallel.refuse_estimates(self.size_of("tp"))
        if isinstance(optimizer, SteppedByEngine):
            bytes_each = memory.remembered(optimizer)
        else:
            made = self.settings.makes_optimizer
            bytes_each = memory.remembers(self.settings.config) if made else state_per_number()
        config = self.settings.for_evaluation(hidden_size(model))
        return memory.estimate(model, self.settings, config, (self.world_size, processes_here()), bytes_each)

    # ---- one update ----

    def accumulate(self, model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """The last micro-batch of an update completes its gradients."""
        self.accelerator.gradient_state.sync_gradients = sync
        if self.deepspeed is not None:
            self.deepspeed.set_gradient_accumulation_boundary(sync)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Backpropagate `loss`, a scalar, which is a part of its update already."""
        scaled = loss if self._scale is None else self._scale.scaled(loss)
        self.deepspeed.backward(scaled, scale_wrt_gas=False, **kwargs)

    def forget_gradients(self, model: nn.Module) -> None:
        """Forget what half an update has left in DeepSpeed's buffers."""
        forget_gradients(self.deepspeed)

    def clip_grad_norm(self, parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0) -> Any:
        """DeepSpeed clips when it steps, to the norm in its configuration; any other is warned of, and not used."""
        say_where_not_clipped(max_norm, norm_type, float(self.deepspeed.gradient_clipping() or 0.0))
        return self.grad_norm(parameters)

    def grad_norm(self, parameters: Iterable[Tensor]) -> Any:
        """The norm of gradients that lie here whole; else a number that the coming step fills in; None: nobody knows it.

        Only DeepSpeed has all pieces of the gradients.
        """
        if not self._has_norm:
            return None
        if isinstance(self.deepspeed.optimizer, torch.optim.Optimizer):
            if not self.measures_norms:
                return None
            if self.divides_layers:
                return tensor_parallel.norm_of_parts(parameters, self.device)
            return super().grad_norm(parameters)
        if self._norm is None:
            self._norm = torch.full((), float("nan"), dtype=torch.float64, device=self.device)
        return self._norm

    @property
    def scales_loss(self) -> bool:
        """DeepSpeed scales losses by itself."""
        return self.settings.precision == "fp16"

    def known(self, norm: Any) -> Any:
        """A norm that the step would fill in, asked for before it."""
        if self._norm is None or norm is not self._norm:
            return norm
        return self._norm.fill_(norm_before_step(self.deepspeed))

    def step(self, optimizer: Optimizer) -> None:
        """One step of DeepSpeed's, which leaves it out where gradients are not finite."""
        self._check_trainable()
        if self._schedule is not None:
            self._schedule.hold()
        optimizer.step()
        if self.mends_gradients:
            forget_sums(self.deepspeed.optimizer)
        self.step_was_skipped = not self.deepspeed.was_step_applied()
        if self.step_was_skipped and not self.scales_loss:
            logger.warning("DeepSpeed has left out an update whose gradients are not finite")
        norm, self._norm = self._norm, None
        found = self.deepspeed.get_global_grad_norm()
        found = found if self._scale is None else self._scale.unscaled(found)
        if norm is not None and found is not None:
            norm.copy_(torch.as_tensor(found))  # which waits for no device

    # ---- what a checkpoint holds ----

    def tensors_of(self, model: nn.Module) -> dict[str, Any]:
        """This process's parts."""
        return {name: getattr(p, "ds_tensor", p).detach() for name, p in model.named_parameters()}

    def model_state(self, model: nn.Module) -> dict[str, Any] | None:
        """All weights by name on the first process, {} on the others; None where each process has them."""
        if self.deepspeed is None or (self.settings.stage < 3 and not self.divides_layers):
            return None
        self._check_kept()
        if self.divides_layers:
            return tensor_parallel.whole_weights(model, writes=self.rank == 0)
        return states.whole_weights(self.deepspeed)

    @property
    def keeps_pieces(self) -> bool:
        """Stage 3 gathers only where the configuration says so; without an optimizer there are no pieces to be saved.

        Adapters are gathered: what is saved of them is read by itself.
        """
        return self.saves_shards and self._stepped is not None and not is_peft(self._stepped.engine.module)

    def beside_pieces(self, model: nn.Module) -> dict[str, Any]:
        """Adapters are small, and who uses them looks for them whole; a learned prompt is not read in pieces."""
        if not is_peft(model) or any(one.is_prompt_learning for one in model.peft_config.values()):  # type: ignore[operator]
            return {}
        return whole_adapters(model)

    def save_shards(self, model: nn.Module, folder: str) -> None:
        """Write DeepSpeed's own checkpoint, which holds the weights in pieces."""
        self._check_kept()
        if self.saves_shards and not self._told_of_pieces:
            self._told_of_pieces = True
            logger.warning(_IN_PIECES)
        self._saved_to = folder  # also where it fails here: the others have met for it
        save_pieces(self.deepspeed, folder, is_peft(model))

    def save_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str, writes: bool) -> None:
        """Write DeepSpeed's own checkpoint: the pieces of weights, optimizer and schedule."""
        if not (self.saves_shards and self._saved_to == folder):  # where they came with the weights
            self.save_shards(model, folder)

    def checkpoint_bytes(self, model: nn.Module, optimizer: Optimizer | None) -> int:
        """The pieces of all processes, and the weights beside them."""
        return states.checkpoint_bytes(self.deepspeed, model, optimizer, whole=not self.saves_shards)

    def load_weights(self, model: nn.Module, folder: str) -> ckpt.LoadReport:
        """Load a checkpoint's weights; of DeepSpeed's own, all that it holds."""
        self._check_kept()
        self._loaded = None
        states.say_where_not_universal(self.deepspeed, folder)
        if self._stepped is not None and states.is_own(self.deepspeed, folder):
            if states.load(self.deepspeed, model, folder):
                mend_universal(self._stepped, model, folder)
            self._loaded = folder
            return ckpt.LoadReport()
        assert self._leaving is not None
        with self._leaving.staying():
            report = states.load_whole(self.deepspeed, model, folder)
        if (
            self._stepped is not None
            and not self.divides_layers
            and (self.settings.precision != "fp32" or self.deepspeed.zero_nvme_offload_optimizer())
        ):
            adopt_weights(self._stepped, model, folder)
        return report

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str) -> bool:
        """It came with the weights, where DeepSpeed itself read them; else it is put into the pieces."""
        if self._loaded == folder:
            return True
        assert self._stepped is not None
        if self.divides_layers:
            tensor_parallel.refuse_states(folder, self.size_of("tp"))
        return adopt_optimizer(self._stepped, model, folder)
