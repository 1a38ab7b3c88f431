"""What the arguments say of the machine they are used on: looked up when it is first asked for, never before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mainspring.arguments import runtime, sagemaker
from mainspring.arguments.accelerator_config import settings_of
from mainspring.arguments.enums import ParallelMode
from mainspring.arguments.hardware import HardwareArguments
from mainspring.arguments.idle import differs_from_default
from mainspring.arguments.logging import LoggingArguments
from mainspring.arguments.output import OutputArguments
from mainspring.arguments.precision import PrecisionArguments
from mainspring.arguments.saving import SavingArguments
from mainspring.arguments.spellings import warn

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

BETWEEN_PROCESSES = (
    "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers",
    "ddp_static_graph",
    "ddp_comm_hook",
    "ddp_backend",
    "ddp_timeout",
    "average_tokens_across_devices",
    "local_rank",
    "log_level_replica",
    "log_on_each_node",
    "save_on_each_node",
)
"""Options that only act between processes, or on those that are not the first."""


class MachineProperties(SavingArguments, LoggingArguments, HardwareArguments, PrecisionArguments, OutputArguments):
    """Device, processes, and what follows from them."""

    @property
    def _place(self) -> runtime.Place:
        place: runtime.Place | None = self.__dict__.get("_found_place")
        if place is None or place.found_by != os.getpid():
            place = runtime.find_place(**self._wanted_place())
            runtime.check_backend(vars(self), self.mixed_precision)
            runtime.check_precision(
                mixed_precision=self.mixed_precision,
                tf32=self.tf32,
                device_type=place.device.type,
                by_launcher=not (self.bf16 or self.fp16),
            )
            # Compiled float32 gains by TF32; with float16 it would only cost exactness.
            by_itself = True if self.torch_compile and (self.bf16 or not self.fp16) else None
            runtime.apply_tf32(by_itself if self.tf32 is None else self.tf32, place.device.type)
            self.__dict__["_found_place"] = place
            if place.world_size == 1:
                self._say_what_only_several_processes_use()
            self._say_that_the_launcher_compiles_nothing()
        return place

    def _say_that_the_launcher_compiles_nothing(self) -> None:
        backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
        if backend.lower() != "no" and not self.torch_compile:
            advice = f"set torch_compile=True and torch_compile_backend={backend.lower()!r} to compile the model"
            warn(f"ACCELERATE_DYNAMO_BACKEND={backend}: has no effect; {advice}", UserWarning)

    def _say_what_only_several_processes_use(self) -> None:
        """One warning, and only now: a script that sets these may as well have been started as several processes."""
        given = {name: getattr(self, name) for name in BETWEEN_PROCESSES if self._was_chosen(name)}
        if given:
            named = ", ".join(f"{name}={value}" for name, value in given.items())
            warn(f"{named}: has no effect, because the run is one process; start it with torchrun", UserWarning)

    def _was_chosen(self, name: str) -> bool:
        """Whether the user has it otherwise than it is anyway. `set_logging` sets what nobody asked it to."""
        origin = vars(self).get("_origins", {}).get(name)
        by_group = origin is not None and origin.source.endswith("by set_logging()")
        return differs_from_default(self, name) and not by_group

    @property
    def distributed_state(self) -> PartialState:
        """Accelerate's state of this process; made now where another run left one of another kind of device."""
        return runtime.processes(**self._wanted_place())

    def _wanted_place(self) -> dict[str, Any]:
        return {
            "use_cpu": self.use_cpu,
            "backend": self.ddp_backend,
            "timeout_s": self.ddp_timeout,
            "local_rank": self.local_rank,
            "configured": settings_of(self.accelerator_config).use_configured_state,
        }

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._place.device

    @property
    def n_gpu(self) -> int:
        """GPUs that this process drives: 1 of several processes, all that are visible of one alone, 0 on the CPU."""
        return self._place.devices

    def _drive_one_device(self) -> None:
        """Leave the other GPUs alone: the model itself lies on several."""
        self.__dict__["_found_place"] = replace(self._place, devices=min(1, self._place.devices))

    @property
    def parallel_mode(self) -> ParallelMode:
        """Whether several processes train together, or one drives several GPUs."""
        if self.device.type == "xla":
            return ParallelMode.TPU
        if self.world_size > 1:
            by_sagemaker = sagemaker.asks_for_data_parallel(os.environ)
            return ParallelMode.SAGEMAKER_DATA_PARALLEL if by_sagemaker else ParallelMode.DISTRIBUTED
        return ParallelMode.NOT_DISTRIBUTED if self.n_gpu > 1 else ParallelMode.NOT_PARALLEL

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._place.world_size

    @property
    def process_index(self) -> int:
        """Rank of this process among all."""
        return self._place.rank

    @property
    def local_process_index(self) -> int:
        """Rank of this process on its machine."""
        return self._place.local_rank

    @property
    def train_batch_size(self) -> int:
        """Training samples per process and micro-batch."""
        return self.per_device_train_batch_size * max(1, self.n_gpu)

    @property
    def eval_batch_size(self) -> int:
        """Evaluation samples per process and batch."""
        return self.per_device_eval_batch_size * max(1, self.n_gpu)

    @property
    def should_log(self) -> bool:
        """Whether this process logs."""
        return (self.local_process_index if self.log_on_each_node else self.process_index) == 0

    @property
    def should_save(self) -> bool:
        """Whether this process saves."""
        return (self.local_process_index if self.save_on_each_node else self.process_index) == 0

    @property
    def ddp_timeout_delta(self) -> timedelta:
        """`ddp_timeout` as a time span."""
        return timedelta(seconds=self.ddp_timeout)

    @property
    def place_model_on_device(self) -> bool | None:
        """Whether the trainer moves the model; None leaves it to the trainer. Override in a subclass."""
        return None

    @property
    def mixed_precision(self) -> str:
        """`bf16`, `fp16` or `no`; without either option, what the launcher says."""
        if self.bf16 or self.fp16:
            return "bf16" if self.bf16 else "fp16"
        return os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()

    def get_process_log_level(self) -> int:
        """Log level of this process, as a number of the standard library's logging."""
        from mainspring.utils.logging import get_log_levels_dict, get_verbosity

        name = self.log_level if self.should_log else self.log_level_replica
        return get_verbosity() if name == "passive" else get_log_levels_dict()[name]

    @contextlib.contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Let the main process go through the context before all others, as for filling a cache.

        Args:
            local: One main process per machine rather than one in all.
            desc: What is done, for the log at level debug.
        """
        from mainspring.utils.logging import get_logger

        state, logger = self.distributed_state, get_logger(__name__)
        is_first = state.is_local_main_process if local else state.is_main_process
        if not is_first:
            place = "on its machine" if local else "of all"
            logger.debug("process %d waits for the first %s to finish: %s", state.process_index, place, desc)
        first = state.local_main_process_first() if local else state.main_process_first()
        phase = f"main_process_first ({desc})"
        with runtime.named_loss(phase, state.process_index, state.num_processes, self.ddp_timeout), first:
            yield
            if is_first and state.num_processes > 1:
                logger.debug("process %d has finished, and lets the others go on: %s", state.process_index, desc)
