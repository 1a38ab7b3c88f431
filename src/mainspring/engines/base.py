"""The engine of one process: every verb in a line or three. Other engines override what differs, and only that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from mainspring import checkpoint as ckpt
from mainspring.data.samplers import mark_last
from mainspring.engines.compilation import check_recomputing, watch_sizes
from mainspring.engines.states import load_any_optimizer, load_any_weights
from mainspring.errors import OptionError, Problem
from mainspring.optimizers.in_backward import UpdatesInBackward

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from mainspring.arguments.deepspeed import DeepSpeedSettings
    from mainspring.arguments.fsdp_config import FSDPConfig
    from mainspring.arguments.parallel_sizes import ParallelSizes
    from mainspring.checkpoint.together import Channel
    from mainspring.engines.accelerator import MainspringAccelerator
    from mainspring.state import TrainerControl

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


@dataclass(frozen=True)
class WrapOptions:
    """The `ddp_*` options; None leaves torch's default.

    Attributes:
        comm_hook: How sums of gradients travel: a name in `COMM_HOOKS`; None: as they are.
        finds_unused: What `find_unused_parameters` is where the user did not say; None: torch's default.
    """

    find_unused_parameters: bool | None = None
    bucket_cap_mb: int | None = None
    broadcast_buffers: bool | None = None
    static_graph: bool | None = None
    comm_hook: str | None = None
    finds_unused: bool | None = None

    def given(self) -> dict[str, Any]:
        """The options that were set, as keywords of `DistributedDataParallel`."""
        unsaid = {} if self.static_graph else {"find_unused_parameters": self.finds_unused}  # a static graph shows it
        found = {**unsaid, **self._chosen()}
        return {name: value for name, value in found.items() if value is not None and name != "comm_hook"}

    @property
    def chosen(self) -> dict[str, Any]:
        """What the user set, by the options' names."""
        return {f"ddp_{name}": value for name, value in self._chosen().items()}

    def _chosen(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None and name != "finds_unused"}


@dataclass(frozen=True)
class EngineOptions:
    """What the options ask of the engine.

    Attributes:
        ddp: How data parallel processes wrap the model.
        fsdp: How the model is sharded over the processes; None: it is not.
        parallelism: Into how many parts the processes divide data, layers and sequences; None: only data.
        deepspeed: The configuration of DeepSpeed; None: it was not asked for.
        devices: Accelerators that this process drives; more than one share each batch.
        compiles: Whether the model is compiled.
        packs: Whether rows hold several samples.
        weighs_parts: Whether the parts of a batch count for their labels or rows in a mean over it, rather than alike.
    """

    ddp: WrapOptions = field(default_factory=WrapOptions)
    fsdp: FSDPConfig | None = None
    parallelism: ParallelSizes | None = None
    deepspeed: DeepSpeedSettings | None = None
    devices: int = 1
    compiles: bool = False
    packs: bool = False
    weighs_parts: bool = True


class SingleProcess:
    """One process, one device.

    Attributes:
        kind: Name of this way to run, as in `ENGINES`.
        is_fsdp: Whether the model is sharded by FSDP, which users read as `trainer.is_fsdp_enabled`.
        is_fsdp2: Whether that is its second version, which users read as `accelerator.is_fsdp2`.
        replaces_parameters: Whether `prepare` puts other parameters into the model: its optimizer is made, and the weights
            of a checkpoint are read, after it.
        joins_optimizer: Whether model, optimizer and schedule are set up together, by `join`, rather than by `prepare` and
            `prepare_optimizer`.
        keeps_schedule: Whether the schedule's state lies with the optimizer's in a checkpoint, and comes back with it.
        brings_steps: Whether optimizer or schedule are the engine's own.
        deepspeed: DeepSpeed's own engine, which users read as `trainer.deepspeed`; None: there is none.
        saves_shards: Whether checkpoints hold the weights in pieces, by `save_shards`, rather than whole.
        data_rank: Which share of the data this process reads, 0 here. Processes that hold parts of one model share one.
        data_world_size: Into how many shares the data is divided, 1 here.
        accelerator: The `accelerate.Accelerator` that holds device, precision and scaler.
        rank: Index of this process, 0 here.
        world_size: Number of processes, 1 here.
        step_was_skipped: Whether the last `step` was left out for an fp16 overflow.
        sync_each_batch: Whether gradients are reduced with every micro-batch, rather than with the last of an update.
        is_idle: Whether nothing counts of the micro-batch under way; see `idle`.
        measures_norms: Whether gradient norms are measured here where DeepSpeed does not.
        mends_gradients: Whether DeepSpeed is kept from stepping with gradients that are not those of the update.
        exact_rows: Whether evaluations leave out the rows that only fill up a batch which Accelerate has shared.
    """

    kind: ClassVar[str] = "single"
    is_fsdp: ClassVar[bool] = False
    is_fsdp2: ClassVar[bool] = False
    replaces_parameters: ClassVar[bool] = False
    joins_optimizer: ClassVar[bool] = False

    def __init__(self, accelerator: MainspringAccelerator, options: EngineOptions) -> None:
        self.accelerator = accelerator
        self.options = options
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes
        self.data_rank = self.rank
        self.data_world_size: int = self.world_size
        self.saves_shards = False
        self.keeps_schedule = False
        self.brings_steps = False
        self.deepspeed: Any = None
        self.scaler: torch.amp.GradScaler | None = accelerator.scaler
        self.step_was_skipped = False
        self.exact_rows = True
        self.measures_norms = True
        self.mends_gradients = True
        self.sync_each_batch = False
        self.optimizer: Optimizer | None = None
        self._unscaled = False
        self.is_idle = False
        self._placed: tuple[nn.Module, nn.Module] | None = None

    @property
    def random_rank(self) -> int:
        """The process whose random numbers this one draws: itself."""
        return self.rank

    @property
    def parallelism_config(self) -> Any:
        """What `accelerator.parallelism_config` is."""
        return self.accelerator.state.parallelism_config

    @property
    def device_mesh(self) -> Any:
        """What `accelerator.torch_device_mesh` is."""
        return self.accelerator.state.device_mesh

    def size_of(self, dimension: str) -> int:
        """How many processes divide layers ("tp") or sequences ("cp", "sp") among them: 1, this one does neither."""
        return 1

    # ---- the model ----

    def place(self, model: nn.Module) -> nn.Module:
        """Prepare `model` for forward passes only: device, autocast, compilation. The same model is prepared once."""
        if not self.is_placed(model):
            self._placed = (model, watch_sizes(self.accelerator.prepare_model(model, evaluation_mode=True)))
        assert self._placed is not None
        return self._placed[1]

    def is_placed(self, model: nn.Module) -> bool:
        """Whether `place` has seen this model."""
        return self._placed is not None and self._placed[0] is model

    def prepare(self, model: nn.Module) -> nn.Module:
        """Prepare `model` for training; what comes back is what `trainer.model_wrapped` is."""
        return self.place(model)

    def join(self, model: nn.Module, optimizer: Optimizer, steps: tuple[int, int]) -> tuple[Any, Any, Any]:
        """Set up model, optimizer and schedule together; only where `joins_optimizer`.

        What comes back for a schedule is None where the engine brings none.
        """
        raise NotImplementedError

    def own_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer | None:
        """The optimizer of these groups that the engine brings, or what stands for it until `join`; None: it brings none."""
        return None

    def check_given(self, optimizer: Any, schedule: Any, evaluates_in: torch.dtype | None) -> None:
        """Refuse what the user passed, where the engine brings its own. Each is None where nothing was passed.

        Args:
            optimizer: An optimizer, or a class of one.
            schedule: A schedule.
            evaluates_in: The half precision of evaluations outside training.
        """

    def halved(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """A placed model in half precision, for an evaluation outside training."""
        return model.to(dtype=dtype, device=self.device)

    def check_model(self, model: nn.Module) -> None:
        """Refuse, before any work, a model that this engine cannot run as the options say."""

    def to_optimize(self, model: nn.Module, wrapped: nn.Module) -> nn.Module:
        """Of the user's model and what forward passes go through, the one that has the parameters to be stepped."""
        return model

    def generating(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """The context of `model.generate`, which enters the model by another door than `forward`."""
        return _NOTHING

    def whole(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """The context of forward passes before the model is set up, which its weights have to be there for: they are."""
        return _NOTHING

    def part_of_sequences(self, model: nn.Module, inputs: Any) -> tuple[Callable[[], Any], Any]:
        """A context for the forward and backward pass in which a batch holds this process's part of its sequences.

        Nothing is divided here: the batch comes back as it is.
        """
        return contextlib.nullcontext, inputs

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` on the device. A copy from pinned memory to a GPU does not wait for what the GPU is doing."""
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")

    # ---- a configuration of its own ----

    def read_options_again(self, options: EngineOptions) -> None:
        """Take over options that have changed since the run was built, where the engine has a configuration of them.

        Raises:
            RuntimeError: It has none.
        """
        raise RuntimeError(f"the engine {self.kind!r} has no configuration to fill in: set deepspeed to have one")

    def explained(self, model: nn.Module, steps: tuple[int, int]) -> str:
        """What there is to be said of that configuration before training: nothing.

        Args:
            model: The model.
            steps: Updates of the run, and those of them that warm up.
        """
        return ""

    # ---- one update ----

    def accumulate(self, model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[Any]:
        """The context of one micro-batch; `sync` is True for the last one of an update."""
        self.accelerator.gradient_state.sync_gradients = sync
        return _NOTHING

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """A micro-batch of which nothing counts: this process has no data left, and others need it in their collectives."""
        self.is_idle = True
        try:
            yield
        finally:
            self.is_idle = False

    def weighed(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss` as it counts: all of it, or, of an idle micro-batch, nothing."""
        return loss * 0.0 if self.is_idle else loss

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Backpropagate `loss`, a scalar."""
        if (updates := self._in_backward) is not None:
            updates.backward(loss, **kwargs)
        elif self.scaler is None:
            loss.backward(**kwargs)
        else:
            self.scaler.scale(loss).backward(**kwargs)

    @property
    def _in_backward(self) -> UpdatesInBackward | None:
        """The run's optimizer, where it acts inside the backward pass."""
        found = getattr(self.optimizer, "optimizer", self.optimizer)
        return found if isinstance(found, UpdatesInBackward) else None

    def why_not_in_backward(self) -> str | None:
        """Why no gradient is complete inside the backward pass, where an optimizer would act on it; None: it is."""
        if self.kind == SingleProcess.kind:
            return None
        return (
            "gradients are complete only when they have been summed over processes or devices, after the backward pass"
        )

    def why_logits(self) -> str | None:
        """Why the output layer cannot compute a loss by itself, instead of logits; None: it can."""
        return None

    @property
    def updates_in_backward(self) -> bool:
        """Whether the run's optimizer acts inside the backward pass."""
        return self._in_backward is not None

    @property
    def remembers_gradients(self) -> bool:
        """Whether something of the gradients is kept from one update to the next, outside of the optimizer."""
        return False

    def why_no_snapshot(self) -> str | None:
        """Why the weights and the optimizer cannot be copied aside and put back within a run; None: they can."""
        if not self.replaces_parameters:
            return None
        return f"under the engine {self.kind!r} weights lie in pieces, of which no copy is kept to go back to"

    def abandon_update(self, model: nn.Module) -> None:
        """The gradients of this update have been forgotten, and it is not made: the loss scale stays as it is."""
        self.forget_gradients(model)
        if self.scaler is not None and self._unscaled:
            self.scaler.update(self.scaler.get_scale())  # that begins the next update, and moves nothing
            self._unscaled = False

    def why_no_averages(self) -> str | None:
        """Why the weights cannot be averaged, parameter by parameter, beside the model; None: they can."""
        return None

    def why_not_again(self) -> str | None:
        """Why one process cannot run a micro-batch again by itself, to see what went wrong in it; None: it can."""
        return None

    def why_not_watched(self) -> str | None:
        """Why hooks on the model's modules do not see what goes in and out of them; None: they do."""
        if self.options.compiles:
            return "a compiled model does not go through its modules one by one"
        if self.replaces_parameters:
            return f"under the engine {self.kind!r} a process has only pieces of weights and gradients"
        return None

    def compiler_metrics(self) -> str | None:
        """What the device's compiler has counted, in lines for people; None: there is none that counts."""
        return None

    def why_not_in_pieces(self, model: nn.Module) -> str | None:
        """Why micro-batches cannot be cut, and an update begun anew, where memory runs out; None: they can."""
        if self.kind == SingleProcess.kind:
            return None
        return f"the engine of this run, {self.kind!r}, cannot begin an update anew: others take part in each of its passes"

    @contextlib.contextmanager
    def apart(self, model: nn.Module) -> Iterator[nn.Module]:
        """`model` for forward and backward passes in which no other process takes part."""
        self.accelerator.gradient_state.sync_gradients = False
        yield model

    def check_recomputing(self) -> None:
        """The model recomputes activations: refuse a compiler that would do so wrongly.

        Raises:
            OptionError: It would.
        """
        if self.options.compiles:
            check_recomputing(self.accelerator.state.dynamo_plugin)

    def why_not_rehearsed(self) -> str | None:
        """Why updates cannot be tried and taken back; None: they can."""
        if self.replaces_parameters:
            return "the model's parameters are divided among processes, which cannot be taken back"
        return None

    def why_not_measured(self) -> str | None:
        """Why what one update allocates cannot be counted tensor by tensor; None: it can."""
        if self.kind == SingleProcess.kind:
            return None
        return "what several processes or devices keep to join their gradients is not seen here; ask in one process"

    def reckoned_memory(self, model: nn.Module, optimizer: Any, state_per_number: Callable[[], float]) -> Any:
        """What each process keeps, where that is reckoned and not tried; None: it is tried.

        Args:
            model: The model, as it was made.
            optimizer: The run's, if it has one by now.
            state_per_number: Finds out how many bytes an optimizer of the library's remembers for each number.
        """
        return None

    def forget_gradients(self, model: nn.Module) -> None:
        """Forget what half an update has left in other places than the parameters' gradients."""

    def prepare_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Take note of the run's optimizer, whose gradients `unscale` works on, and return it ready to step.

        Raises:
            OptionError: The run scales losses, and some of the weights that it trains are in float16 themselves.
        """
        if self.scaler is not None:
            _check_scalable(parameter for group in optimizer.param_groups for parameter in group["params"])
        self.optimizer = optimizer
        return optimizer

    def unscale(self, optimizer: Optimizer | None = None) -> None:
        """Divide the gradients by the loss scale, at most once per update."""
        optimizer = optimizer or self.optimizer
        if self.scaler is None or self._unscaled or optimizer is None:
            return
        self.scaler.unscale_(getattr(optimizer, "optimizer", optimizer))  # Accelerate's wrapper hides the real one
        self._unscaled = True

    def clip_grad_norm(
        self, parameters: Iterable[torch.Tensor], max_norm: float, norm_type: float = 2.0
    ) -> torch.Tensor:
        """Clip to a total norm of `max_norm`; returns the norm before clipping, 0-d on the device."""
        if (updates := self._in_backward) is not None:
            return (
                updates.take_grad_norm()
            )  # the gradients are gone; whether they were clipped is the optimizer's affair
        if self.scaler is not None:
            self.unscale()
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    @property
    def scales_loss(self) -> bool:
        """Whether losses are scaled, for fp16, and updates left out whose scaled gradients overflow."""
        return self.scaler is not None

    def known(self, norm: Any) -> Any:
        """A norm from `clip_grad_norm` or `grad_norm` that can be read now, before the step."""
        return norm

    def grad_norm(self, parameters: Iterable[torch.Tensor]) -> torch.Tensor:
        """The total norm of the gradients, which stay as they are."""
        if (updates := self._in_backward) is not None:
            return updates.take_grad_norm()
        if self.scaler is not None:
            self.unscale()
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def step(self, optimizer: Optimizer) -> None:
        """One optimizer step; with a scaler it may be skipped, which `step_was_skipped` then says."""
        if self.scaler is None:
            optimizer.step()
            return
        before = self.scaler.get_scale()
        self.scaler.step(getattr(optimizer, "optimizer", optimizer))
        self.scaler.update()
        self._unscaled = False
        self.step_was_skipped = self.scaler.get_scale() < before

    # ---- what a checkpoint holds: every process calls these together ----

    def tensors_of(self, model: nn.Module) -> dict[str, Any]:
        """What of the weights lies here, for one process to measure: nothing is gathered."""
        return dict(model.state_dict())

    def model_state(self, model: nn.Module) -> dict[str, Any] | None:
        """All weights by name, on the process that writes; None where the model's own state dict is that."""
        return None

    def own_names(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """The modules of the model have their own names, for one that picks by them what it saves."""
        return _NOTHING

    @property
    def keeps_pieces(self) -> bool:
        """Whether the weights stay in pieces, by `save_shards`, wherever they are saved, and not in checkpoints alone."""
        return False

    def beside_pieces(self, model: nn.Module) -> dict[str, Any]:
        """What is saved whole beside pieces: nothing, as a rule. All processes ask."""
        return {}

    def checkpoint_bytes(self, model: nn.Module, optimizer: Optimizer | None) -> int:
        """About how many bytes a checkpoint takes; `optimizer` is None where its state is left out."""
        states = [] if optimizer is None else [optimizer.state_dict()]
        return ckpt.estimate_bytes(self.tensors_of(model), *states)

    def save_shards(self, model: nn.Module, folder: str) -> None:
        """Write each process's pieces of the weights; only where `saves_shards`."""
        raise NotImplementedError

    def load_weights(self, model: nn.Module, folder: str) -> ckpt.LoadReport:
        """Load a checkpoint's weights into the model, in place; what did not match comes back."""
        return load_any_weights(model, folder)

    def save_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str, writes: bool) -> None:
        """Write the optimizer's state; `writes` says whether this process does so for all."""
        if writes:
            ckpt.save_torch(optimizer.state_dict(), os.path.join(folder, ckpt.OPTIMIZER_NAME))

    def load_optimizer(self, model: nn.Module, optimizer: Optimizer, folder: str) -> bool:
        """Load the optimizer's state; False where the checkpoint has none."""
        file = ckpt.Contents.of(folder).file(ckpt.OPTIMIZER_NAME)
        if file is None:  # it may be from a run whose model was sharded
            return load_any_optimizer(model, optimizer, folder)
        optimizer.load_state_dict(ckpt.load_torch(file))
        return True

    # ---- between processes ----

    def session(self, name: str) -> contextlib.AbstractContextManager[None]:
        """The body works together with the other processes, and ends with a `ProcessesError` when they are lost.

        Args:
            name: What the body is, for the others: "train()".
        """
        return _NOTHING

    def during(self, phase: str | Callable[[], str]) -> contextlib.AbstractContextManager[None]:
        """The body is a phase of its own, which errors between processes name: a text, or what tells it."""
        return _NOTHING

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a 0-d tensor over all processes, on the host."""
        return float(value.item())

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, on the device."""
        return value

    def share(self, value: Any, source: int = 0) -> Any:
        """The `value` of the process `source`, a picklable object."""
        return value

    def each(self, numbers: Sequence[int]) -> list[list[int]]:
        """A few whole numbers of every share of the data, in the order of `data_rank`. No device is waited for."""
        return [list(numbers)]

    def pass_on(self, value: Any, source: int) -> Any:
        """The `value` of the process with the share `source` of the data, a picklable object."""
        return value

    def data_channel(self) -> Any:
        """A group of the processes that read different data, for what travels between hosts; None with one of them."""
        return None

    def every(self, value: Any) -> list[Any]:
        """The values of all processes by rank, picklable objects."""
        return [value]

    def channel(self) -> Channel | None:
        """A way between the processes for a thread of each, which nothing else uses; None with one of them."""
        return None

    def barrier(self) -> None:
        """Wait until every process is here."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag

    def agree(self, wish: bool) -> bool:
        """Whether all processes act on a wish that any of them had. Each must ask equally often.

        The answer is the same everywhere, and may be one question late: nobody waits for the others' present wishes.
        """
        return wish

    def settle(self, control: TrainerControl) -> None:
        """Leave in `control` what every process asks for; what only some ask for, all ask for the next time.

        Each must settle equally often.
        """

    def forget_wishes(self) -> None:
        """A run begins: nothing that was asked for before is waited for."""

    # ---- evaluation ----

    def same_buffers(self, model: nn.Module) -> None:
        """Let all processes evaluate with the buffers of the first, which are those that it saves."""

    def evaluation_batches(self, loader: Iterable[Any]) -> Iterator[tuple[Any, list[int] | None]]:
        """Yield `(batch, rows)` for an evaluation; `rows` are those that each process contributes, None for all of it.

        While the last batch is out, `accelerator.gather_for_metrics` knows what only filled it up.
        """
        if hasattr(loader, "end_of_dataloader"):  # prepared by Accelerate: it does its own book-keeping
            for batch in loader:
                yield batch, None
            return
        with self._end_marker() as marker:
            for batch, is_last in mark_last(loader):
                if is_last:
                    marker.close(_remainder(loader, self.world_size))
                yield batch, None

    @contextlib.contextmanager
    def _end_marker(self) -> Iterator[EndMarker]:
        marker = EndMarker()
        self.accelerator.gradient_state._add_dataloader(marker)
        try:
            yield marker
        finally:
            self.accelerator.gradient_state._remove_dataloader(marker)

    def gather(self, data: Any) -> Any:
        """The tensors of every share of the data, one after another along dimension 0."""
        return data

    def gather_rows(self, data: Any, as_objects: bool) -> Any:
        """Gather what each process contributes to the round that `evaluation_batches` has out; None outside of one."""
        return None


def _check_scalable(parameters: Iterable[torch.Tensor]) -> None:
    """Gradients of float16 weights are in float16 too: divided by the loss scale, they would vanish."""
    if any(parameter.dtype == torch.float16 for parameter in parameters):
        why = "it keeps the weights that it trains in float32, and the model has them in float16"
        raise OptionError([Problem("fp16", True, why, "load the model in float32, or train it with bf16=True")])


class EndMarker:
    """What Accelerate's gradient state asks of the loader in use."""

    def __init__(self) -> None:
        self.end_of_dataloader = False
        self.remainder = -1

    def close(self, remainder: int) -> None:
        """The last batch is out; `remainder` samples of its round count, or all of them where it is -1 or 0."""
        self.end_of_dataloader = True
        self.remainder = remainder


def _remainder(loader: Iterable[Any], world_size: int) -> int:
    """Samples of the last round that are no filling; -1 where that cannot be known, or where nothing is filled up."""
    if world_size == 1 or getattr(loader, "dealt", None) is None:
        return -1  # each process goes through all of its own
    batches = getattr(loader, "batch_sampler", None)
    batch_size = getattr(batches, "batch_size", None) or getattr(loader, "batch_size", None)
    try:
        samples = len(loader.dataset)  # type: ignore[attr-defined]
    except (TypeError, AttributeError):
        return -1
    return samples % (batch_size * world_size) if batch_size else -1
