"""`TrainingArguments`: every option of a run, as pure data.

Building one touches no device, process group, network or disk. Options are declared in groups, one file each; here they
become one flat object, in three phases: read (`normalise`, `spellings`), validated (each option's own check, then
`rules`, all problems in one error), and, on first use of `device` and its kind, joined to the hardware (`runtime`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from mainspring.arguments import not_yet, runtime
from mainspring.arguments.data import DataArguments
from mainspring.arguments.enums import ParallelMode
from mainspring.arguments.evaluation import EvaluationArguments
from mainspring.arguments.hardware import HardwareArguments
from mainspring.arguments.logging import LoggingArguments
from mainspring.arguments.normalise import accepted_types, read
from mainspring.arguments.optimizer import OptimizerArguments
from mainspring.arguments.output import OutputArguments
from mainspring.arguments.own import OwnArguments
from mainspring.arguments.precision import PrecisionArguments
from mainspring.arguments.rules import RULES
from mainspring.arguments.saving import HubArguments, SavingArguments
from mainspring.arguments.spellings import OLDER_NAMES, RENAMED, translate
from mainspring.errors import NotAvailableError, OptionError, Problem, did_you_mean

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


class UnknownOptionError(OptionError, TypeError):
    """A keyword that is no option."""


class _Construction(type):
    """What happens around the constructor of `TrainingArguments` and of its subclasses.

    A subclass that is a dataclass generates an `__init__` of its own, which knows nothing of older spellings; and one
    with its own `__post_init__` may not call ours. Both hang on the call instead.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        names, open_ended = _constructor_names(cls)
        if "output_dir" in names:  # the one positional option, wherever a subclass's generated constructor has it
            if len(args) > 1:
                raise TypeError(f"{cls.__name__} takes one positional argument, output_dir, but got {len(args)}")
            if args and "output_dir" in kwargs:
                raise TypeError(f"{cls.__name__} got output_dir twice")
            kwargs.update(zip(("output_dir",), args, strict=False))
            args = ()
        options, problems = translate(kwargs)
        unknown = [name for name in options if name not in names and not open_ended]
        if unknown:
            raise UnknownOptionError(
                Problem(name, options[name], "is no option", f"leave it out{did_you_mean(name, names)}")
                for name in unknown
            )
        if problems:
            raise OptionError(problems)
        instance = super().__call__(*args, **options)
        if not instance.__dict__.get("_ready"):
            TrainingArguments.__post_init__(instance)
        return instance


@functools.cache
def _constructor_names(cls: type) -> tuple[frozenset[str], bool]:
    """The keywords of a class's constructor, and whether it takes any other."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return frozenset(p.name for p in parameters), open_ended


@functools.cache
def _options_of(cls: type) -> tuple[tuple[dataclasses.Field[Any], frozenset[Any]], ...]:
    """The declared options of a class with the types they accept. Fields that a user's subclass adds are their own."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("mainspring.")]
    hints = {name: hint for base in reversed(ours) for name, hint in typing.get_type_hints(base).items()}
    return tuple(
        (field, accepted_types(hints[field.name]))
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if "check" in field.metadata and field.name in hints
    )


@dataclass(kw_only=True)
class TrainingArguments(
    OwnArguments,
    HubArguments,
    SavingArguments,
    EvaluationArguments,
    LoggingArguments,
    DataArguments,
    HardwareArguments,
    PrecisionArguments,
    OptimizerArguments,
    OutputArguments,
    metaclass=_Construction,
):
    """Every option of a run. `TrainingArguments("out", learning_rate=1e-4)`: only `output_dir` is positional.

    Raises:
        OptionError: Options that cannot be, all in one error.
        NotAvailableError: Options whose machinery is not here yet.
    """

    # ---- construction ----

    def __post_init__(self) -> None:
        problems = self._read_values()
        if not problems:
            self._resolve()
            problems = self._check_values()
        if problems:
            raise OptionError(problems)
        later = self._not_available()
        if later:
            raise NotAvailableError(later)
        self.__dict__["_ready"] = True

    def _read_values(self) -> list[Problem]:
        problems = []
        for field, kinds in _options_of(type(self)):
            value = getattr(self, field.name)
            if value is field.default:
                continue
            meta = field.metadata
            read_value, problem = read(field.name, value, kinds, meta["choices"], meta["json"])
            if problem is None:
                setattr(self, field.name, read_value)
            else:
                problems.append(problem)
        return problems

    def _resolve(self) -> None:
        """Options that stand for one another, or follow from one another, read back resolved."""
        self.output_dir = "trainer_output" if self.output_dir is None else os.path.expanduser(self.output_dir)
        if self.eval_strategy == "steps" and not self.eval_steps and self.logging_steps > 0:
            self.eval_steps = self.logging_steps
        self.do_eval = self.do_eval or self.eval_strategy != "no"
        follows_metric = self.load_best_model_at_end or self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if self.metric_for_best_model is None and follows_metric:
            self.metric_for_best_model = "loss"
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = not self.metric_for_best_model.endswith("loss")
        if self.save_total_limit is not None and self.save_total_limit <= 0:
            self.save_total_limit = None
        if isinstance(self.include_num_input_tokens_seen, bool):
            self.include_num_input_tokens_seen = "all" if self.include_num_input_tokens_seen else "no"
        self.report_to = _services(self.report_to)
        self._resolve_checkpointing()
        self._resolve_compilation()
        if self.disable_tqdm is None:
            from mainspring.utils.logging import get_verbosity

            self.disable_tqdm = get_verbosity() > 30

    def _resolve_checkpointing(self) -> None:
        recompute = bool(self.activation_checkpointing or self.gradient_checkpointing)
        self.activation_checkpointing = self.gradient_checkpointing = recompute
        keywords = self.activation_checkpointing_kwargs or self.gradient_checkpointing_kwargs
        self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs = keywords

    def _resolve_compilation(self) -> None:
        if self.torch_compile_backend is not None or self.torch_compile_mode is not None:
            self.torch_compile = True
        if self.torch_compile and self.torch_compile_backend is None:
            self.torch_compile_backend = "inductor"

    def _check_values(self) -> list[Problem]:
        problems = []
        for field, _ in _options_of(type(self)):
            check, value = field.metadata["check"], getattr(self, field.name)
            if check is None or value is None or value is field.default:
                continue
            complaint = check(value)
            if complaint is not None:
                problems.append(Problem(field.name, value, complaint, "correct it"))
        if problems:
            return problems
        return [problem for rule in RULES if (problem := rule(self)) is not None]

    def _not_available(self) -> list[Problem]:
        found = (
            not_yet.problem(field.name, getattr(self, field.name), field.default)
            for field, _ in _options_of(type(self))
        )
        return [problem for problem in found if problem is not None]

    def __getattr__(self, name: str) -> Any:
        if name in OLDER_NAMES:
            return _older_value(self, name)
        raise AttributeError(f"{type(self).__name__} has no option {name!r}{did_you_mean(name, vars(self))}")

    # ---- batch sizes, steps ----

    @property
    def train_batch_size(self) -> int:
        """Training samples per process and micro-batch."""
        return self.per_device_train_batch_size * max(1, self.n_gpu)

    @property
    def eval_batch_size(self) -> int:
        """Evaluation samples per process and batch."""
        return self.per_device_eval_batch_size * max(1, self.n_gpu)

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Updates of warm-up among `num_training_steps`: a share is rounded up."""
        if self.warmup_steps >= 1:
            return int(self.warmup_steps)
        return math.ceil(num_training_steps * self.warmup_steps)

    # ---- device and processes, on first use ----

    @property
    def _processes(self) -> PartialState:
        state = runtime.processes(
            use_cpu=self.use_cpu, backend=self.ddp_backend, timeout_s=self.ddp_timeout, local_rank=self.local_rank
        )
        if not self.__dict__.get("_hardware_checked"):
            runtime.check_precision(bf16=self.bf16, fp16=self.fp16, tf32=self.tf32, device_type=state.device.type)
            runtime.apply_tf32(self.tf32)
            self.__dict__["_hardware_checked"] = True
        return state

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self._processes.device
        return device

    @property
    def n_gpu(self) -> int:
        """GPUs that this process drives: 1, or 0 on the CPU."""
        return 0 if self.device.type == "cpu" else 1

    @property
    def parallel_mode(self) -> ParallelMode:
        """Whether several processes train together."""
        return ParallelMode.DISTRIBUTED if self.world_size > 1 else ParallelMode.NOT_PARALLEL

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self._processes.num_processes)

    @property
    def process_index(self) -> int:
        """Rank of this process among all."""
        return int(self._processes.process_index)

    @property
    def local_process_index(self) -> int:
        """Rank of this process on its machine."""
        return int(self._processes.local_process_index)

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
        return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")

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
            desc: What is done, for the log.
        """
        state = self._processes
        with state.local_main_process_first() if local else state.main_process_first():
            yield

    # ---- printed and saved forms ----

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values; tokens are masked as `<HUB_TOKEN>`."""
        return {
            field.name: _plain(field.name, getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.init
        }

    def to_json_string(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """`to_dict` with values that loggers of hyper-parameters take: numbers, truth values and text."""
        options = {**self.to_dict(), "train_batch_size": self.train_batch_size, "eval_batch_size": self.eval_batch_size}
        return {
            name: value if type(value) in (bool, int, float, str) else str(value) for name, value in options.items()
        }

    def __str__(self) -> str:
        lines = [f"{name}={value!r}," for name, value in sorted(self.to_dict().items())]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])

    __repr__ = __str__


def _plain(name: str, value: Any) -> Any:
    if name.endswith("_token") and value is not None:
        return f"<{name.upper()}>"
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain("", item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _services(report_to: str | list[str] | None) -> list[str]:
    named = [report_to] if isinstance(report_to, str) else list(report_to or [])
    return [] if named == ["none"] else named


def _older_value(args: TrainingArguments, name: str) -> Any:
    """What an option of the older generation would read as."""
    import warnings

    if name in RENAMED:
        warnings.warn(f"{name} is now {RENAMED[name]}", FutureWarning, stacklevel=3)
        return getattr(args, RENAMED[name])
    readings = {
        "warmup_ratio": lambda: args.warmup_steps if args.warmup_steps < 1 else 0.0,
        "group_by_length": lambda: args.train_sampling_strategy == "group_by_length",
        "adafactor": lambda: args.optim == "adafactor",
        "include_inputs_for_metrics": lambda: "inputs" in args.include_for_metrics,
        "include_tokens_per_second": lambda: args.include_num_input_tokens_seen != "no",
        "save_safetensors": lambda: True,
        "overwrite_output_dir": lambda: False,
        "_n_gpu": lambda: args.n_gpu,
    }
    if name not in readings:
        raise AttributeError(f"{type(args).__name__} has no option {name!r}: it belongs to an older generation")
    return readings[name]()
