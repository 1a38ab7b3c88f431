"""`TrainingArguments`: every option of a run, as pure data.

Building one touches no device, process group, network or disk. Options are declared in groups, one file each; here they
become one flat object, in three phases: read (`spellings`, `normalise`), validated (each option's own check, then
`rules`, all problems in one error), and, on first use of `device` and its kind, joined to the hardware (`machine`).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TextIO

from mainspring.arguments import fsdp_loading, launchers, not_yet
from mainspring.arguments.accelerator_config import AcceleratorConfig, accumulated, settings_of
from mainspring.arguments.compat import BEHAVIOURS, apply_older_defaults
from mainspring.arguments.construction import Construction, takes_every_spelling
from mainspring.arguments.data import DataArguments
from mainspring.arguments.deepspeed.held import HoldsDeepSpeed, hold
from mainspring.arguments.docstring import default_of
from mainspring.arguments.enums import DebugOption
from mainspring.arguments.evaluation import EvaluationArguments
from mainspring.arguments.fsdp_config import fsdp_settings
from mainspring.arguments.fsdp_keys import FILLED_IN
from mainspring.arguments.hardware import HardwareArguments
from mainspring.arguments.idle import idle_options
from mainspring.arguments.logging import LoggingArguments
from mainspring.arguments.masking import mask_of, shown
from mainspring.arguments.normalise import read, read_record
from mainspring.arguments.optimizer import OptimizerArguments
from mainspring.arguments.output import OutputArguments
from mainspring.arguments.own import OwnArguments
from mainspring.arguments.parallel_sizes import parallel_sizes
from mainspring.arguments.precision import PrecisionArguments
from mainspring.arguments.rules import NOTICES, broken_rules
from mainspring.arguments.saving import HubArguments, SavingArguments
from mainspring.arguments.setters import GroupedSetters
from mainspring.arguments.sources import Sourced
from mainspring.arguments.spellings import OLDER_NAMES, kept, older_value, translate, warn
from mainspring.arguments.typed import accepted_types
from mainspring.errors import NotAvailableError, OptionError, Problem, printed
from mainspring.utils.logging import get_verbosity

if TYPE_CHECKING:
    from typing_extensions import Self


@functools.cache
def _options_of(cls: type) -> tuple[tuple[dataclasses.Field[Any], frozenset[Any]], ...]:
    """The options as this package declares them, each with the types it accepts.

    A subclass that gives an option another default declares a field of its own, without limits: ours still hold. The
    options that a subclass adds are its own.
    """
    ours = next(base for base in cls.__mro__ if base.__module__.startswith("mainspring."))
    hints = typing.get_type_hints(ours)
    return tuple((field, _kinds(hints[field.name], field.metadata["also"])) for field in dataclasses.fields(ours))


def _kinds(annotation: Any, also: Sequence[type]) -> frozenset[Any]:
    kinds = accepted_types(annotation)
    return kinds.union(also) if kinds else kinds


@takes_every_spelling
@dataclass(kw_only=True, repr=False)
class TrainingArguments(
    Sourced,
    GroupedSetters,
    HoldsDeepSpeed,
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
    metaclass=Construction,
):
    """Every option of a run. `TrainingArguments("out", learning_rate=1e-4)`: only `output_dir` is positional.

    Raises:
        OptionError: Options that cannot be, all in one error.
        NotAvailableError: Options whose machinery is not here yet.
    """

    # ---- construction ----

    def __post_init__(self) -> None:
        self._complete()

    def _complete(self) -> None:
        """Read, resolve and validate. A subclass's own `__post_init__` may have changed options before."""
        changed = {f.name: v for f, _ in _options_of(type(self)) if (v := getattr(self, f.name)) is not f.default}
        self._note_set_by_class(changed)
        values, problems = self._read(changed)
        vars(self).update(values)
        self._note_readings(changed, values)
        if problems:
            others = self._further_problems({problem.option for problem in problems})
            raise OptionError(self._as_written([*problems, *others]))
        self._resolve()
        problems = broken_rules(self)
        if problems:
            raise OptionError(self._as_written([*problems, *self._unavailable()]))
        self._refuse_unavailable()
        for problem in [*(notice(self) for notice in NOTICES), *idle_options(self)]:
            if problem is not None:
                warn(str(problem), UserWarning)
        self.__dict__["_ready"] = True

    def _recheck(self) -> None:
        """Look again at options, which may have been set one by one since construction. No value is changed.

        Raises:
            OptionError: Options that cannot be.
            NotAvailableError: Options whose machinery is not here yet.
        """
        given = {field.name: getattr(self, field.name) for field, _ in _options_of(type(self))}
        values, problems = self._read(given)
        unread = {problem.option for problem in problems}
        problems += [
            _written_otherwise(n, given[n], v) for n, v in values.items() if _differs(given[n], v, n in unread)
        ]
        trial = copy.copy(self)
        vars(trial).update(values)
        vars(trial).update({f.name: default_of(f) for f, _ in _options_of(type(self)) if f.name in unread})
        vars(trial)["report_to"] = _services(trial.report_to)
        problems += [problem for problem in broken_rules(trial, unread) if problem.option not in unread]
        if problems:
            raise OptionError([*problems, *trial._unavailable()])
        trial._refuse_unavailable()

    def _assign(self, **options: Any) -> Self:
        """Read, check and set options together, in any spelling; nothing is set where one of them cannot be.

        Raises:
            OptionError: Options that cannot be.
            NotAvailableError: Options whose machinery is not here yet.
        """
        newer, older_problems = translate(options, settled=vars(self))
        values, problems = self._read(newer)
        if older_problems or problems:
            raise OptionError([*older_problems, *problems])
        if "report_to" in values:
            values["report_to"] = _services(values["report_to"])
        before = dict(vars(self))
        vars(self).update(values)
        caller = sys._getframe(1).f_code.co_name
        self._note_assignment(options, newer, caller if caller.startswith("set_") else "")
        try:
            self._refuse_unavailable()
        except NotAvailableError:
            vars(self).update(before)
            raise
        return self

    def _further_problems(self, unread: set[str]) -> list[Problem]:
        """What else is wrong, among the options other than `unread`: all is said in one error."""
        readable = copy.copy(self)
        for field, _ in _options_of(type(self)):
            if field.name in unread:
                setattr(readable, field.name, default_of(field))
        readable._resolve()
        if "logging_steps" in unread:
            unread = {*unread, "eval_steps"}  # may have been taken from there
        problems = [*broken_rules(readable, unread), *readable._unavailable()]
        return [problem for problem in problems if problem.option not in unread]

    @classmethod
    def _read(cls, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Each value as its option's type, or what is wrong with it."""
        values, problems = {}, []
        for field, kinds in _options_of(cls):
            if field.name not in options:
                continue
            meta = field.metadata
            value = options[field.name]
            if value is None and meta["none"] is not dataclasses.MISSING:
                value = meta["none"]
            if isinstance(value, str) and value == mask_of(field.name):  # from saved options, which hold no tokens
                value = None
            if meta["record"] is not None or meta["reader"] is not None:
                values[field.name], found = _read_settings(field, value, kinds)
                problems.extend(found)
                continue
            value, problem = read(field.name, value, kinds, meta["choices"], meta["json"])
            if problem is None and meta["check"] is not None and value is not None:
                complaint = meta["check"](value)
                problem = Problem(field.name, value, complaint, "correct it") if complaint else None
            values[field.name] = value
            if problem is not None:
                problems.append(problem)
        return values, problems

    def _resolve(self) -> None:
        """Options that stand for one another, or follow from one another, read back resolved."""
        self.output_dir = "trainer_output" if self.output_dir is None else self.output_dir
        if (path := os.path.expanduser(self.output_dir)) != self.output_dir:
            self._adjust("output_dir", path, "~ is a home folder")
        if self.compat == "4.37":
            apply_older_defaults(self)
        if self.eval_strategy == "steps" and not self.eval_steps and self.logging_steps > 0:
            self._derive("eval_steps", self.logging_steps, "logging_steps")
        for name in ("logging_steps", "eval_steps", "save_steps"):
            steps = getattr(self, name)
            if steps is not None and steps >= 1:
                setattr(self, name, int(steps))
        if self.eval_strategy != "no":
            self._derive("do_eval", True, "eval_strategy")
        follows_metric = self.load_best_model_at_end or self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if self.metric_for_best_model is None and follows_metric:
            by = "load_best_model_at_end" if self.load_best_model_at_end else "lr_scheduler_type"
            self._derive("metric_for_best_model", "loss", by)
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            greater = not BEHAVIOURS[self.compat].is_loss(self.metric_for_best_model)
            self._derive("greater_is_better", greater, "metric_for_best_model")
        if self.save_total_limit is not None and self.save_total_limit <= 0:
            self._adjust("save_total_limit", None, "every checkpoint is kept")
        self.debug = DebugOption.words(self.debug)
        if isinstance(self.include_num_input_tokens_seen, bool):
            self.include_num_input_tokens_seen = "all" if self.include_num_input_tokens_seen else "no"
        if self.use_cpu:
            self._derive("dataloader_pin_memory", False, "use_cpu")
        self.report_to = _services(self.report_to)
        if self.accelerator_config is None:
            vars(self)["accelerator_config"] = AcceleratorConfig()
        steps = accumulated(settings_of(self.accelerator_config))
        if isinstance(steps, int) and steps > 1 and self.gradient_accumulation_steps == 1:
            self._derive("gradient_accumulation_steps", steps, "accelerator_config")
        self._resolve_sharding()
        self._resolve_checkpointing()
        self._resolve_compilation()
        if self.disable_tqdm is None:
            self._derive("disable_tqdm", get_verbosity() > 30, "the library's log level")

    def _resolve_sharding(self) -> None:
        """Scripts look up some settings of FSDP without asking whether they were given."""
        settings = self.fsdp_config or {}
        if not self.fsdp or not isinstance(settings, Mapping):
            return
        filled = {**settings, **{name: value for name, value in FILLED_IN.items() if name not in settings}}
        if settings:
            vars(self)["fsdp_config"] = filled
        else:
            self._derive("fsdp_config", filled, "fsdp")

    def _heed_launcher(self) -> None:
        """Look for what a launcher says otherwise, and tell `from_pretrained`, which comes next, how to load.

        That is the one thing beyond itself which constructing arguments touches. Where FSDP is to load that way: two
        environment variables, and the group of processes, without which `from_pretrained` ignores them; the newest
        arguments decide: others put the variables back. With DeepSpeed: which configuration is in force (`registry`).

        Raises:
            OptionError: The launcher contradicts the options.
        """
        parallel_sizes(self)
        hold(self)
        sharding = fsdp_settings(self)
        if sharding is None or not sharding.cpu_ram_efficient_loading:
            fsdp_loading.withdraw()
            return
        fsdp_loading.announce()
        if launchers.torch_words(os.environ) or os.environ.get("WORLD_SIZE", "1") != "1":
            _ = self.distributed_state

    def _resolve_checkpointing(self) -> None:
        """The newer name wins where both are given."""
        for newer, older in (
            ("activation_checkpointing", "gradient_checkpointing"),
            ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        ):
            follower, leader = (newer, older) if getattr(self, newer) is None else (older, newer)
            self._derive(follower, getattr(self, leader), leader)
        for name in ("activation_checkpointing", "gradient_checkpointing"):
            vars(self)[name] = bool(getattr(self, name))

    def _resolve_compilation(self) -> None:
        for name in ("torch_compile_backend", "torch_compile_mode"):
            if getattr(self, name) is not None:
                self._derive("torch_compile", True, name)
        if self.torch_compile and self.torch_compile_backend is None:
            self._derive("torch_compile_backend", "inductor", "torch_compile")

    def _unavailable(self) -> list[Problem]:
        found = (
            not_yet.problem(field.name, getattr(self, field.name), field.default)
            for field, _ in _options_of(type(self))
        )
        return [problem for problem in found if problem is not None]

    def _refuse_unavailable(self) -> None:
        if problems := self._unavailable():
            raise NotAvailableError(self._as_written(problems))

    if not TYPE_CHECKING:  # to a type checker either of these would make every misspelt attribute right

        def __getattr__(self, name: str) -> Any:
            if name in OLDER_NAMES:
                return older_value(self, name)
            # With name and object, Python itself adds what may have been meant, and only where the error is shown.
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in OLDER_NAMES and name not in type(self).__dataclass_fields__:
                _set_older_value(self, name, value)
                return
            super().__setattr__(name, value)
            if "_ready" in self.__dict__ and name in type(self).__dataclass_fields__:
                self._note_assignment({}, {name: value})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_found_place"}  # true of one process only

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Updates of warm-up among `num_training_steps`: a share is rounded up, a number of updates down."""
        if self.warmup_steps >= 1:
            return int(self.warmup_steps)
        return math.ceil(num_training_steps * self.warmup_steps)

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
        return json.dumps(_without_infinities(self.to_dict()), indent=2, default=str, allow_nan=False)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """`to_dict` with values that loggers of hyper-parameters take: numbers, truth values and text."""
        options = {**self.to_dict(), "train_batch_size": self.train_batch_size, "eval_batch_size": self.eval_batch_size}
        return {
            name: value if type(value) in (bool, int, float, str) else str(value) for name, value in options.items()
        }

    def explain(self, everything: bool = False, file: TextIO | None = None) -> None:
        """Print the options with their values, where each came from, and what was adjusted or does nothing, and why.

        Args:
            everything: Print all options, not only those that differ from the defaults or need a word.
            file: Where to; standard output by default.
        """
        from mainspring.arguments.explain import explanation

        (file or sys.stdout).write(explanation(self).text(everything))

    def __str__(self) -> str:
        lines = [f"{name}={value!r}," for name, value in sorted(self.to_dict().items())]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])

    __repr__ = __str__


def _plain(name: str, value: Any) -> Any:
    if value and (mask := mask_of(name)) is not None:
        return mask
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain("", item) for item in value]
    if not isinstance(value, type) and callable(getattr(value, "to_dict", None)):
        value = value.to_dict()
    return {key: _plain(str(key), item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _without_infinities(value: Any) -> Any:
    """The same with numbers that JSON does not have as text, which options read too; and with names that are text."""
    if isinstance(value, Mapping):
        return {str(name): _without_infinities(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read_settings(field: dataclasses.Field[Any], value: Any, kinds: frozenset[Any]) -> tuple[Any, list[Problem]]:
    """The value of an option that holds settings, which may be wrong each for itself."""
    reader = field.metadata["reader"]
    if reader is None:
        return read_record(field.name, value, kinds, field.metadata["record"])
    found: tuple[Any, list[Problem]] = reader(field.name, value)
    return found


def _services(report_to: str | list[str] | None) -> list[str]:
    named = [report_to] if isinstance(report_to, str) else list(report_to or [])
    return [] if named == ["none"] else named


def _differs(value: Any, read: Any, is_unread: bool) -> bool:
    """Whether a value is written in a way that only the constructor turns into the option's type."""
    plain = isinstance(value, (str, Mapping, int, float, type(None)))
    return not is_unread and plain and not isinstance(read, type(value))


def _written_otherwise(name: str, value: Any, read: Any) -> Problem:
    why = f"was set after construction as {'None' if value is None else f'a {type(value).__name__}'}"
    return Problem(name, shown(name, value), why, f"set it to {printed(shown(name, read))}, or give it at construction")


def _set_older_value(args: TrainingArguments, name: str, value: Any) -> None:
    """Set what an option of the older generation means now."""
    args._assign(**{name: value})
    vars(args).update(kept({name: value}))


_options_of(TrainingArguments)  # once, here: annotations take longer to read than arguments to build
