"""`DeepSpeedSettings`: a DeepSpeed configuration in which the options have taken their places."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mainspring.arguments import launchers
from mainspring.arguments.deepspeed import launcher, rules, words
from mainspring.arguments.deepspeed.filling import (
    BY_OPTIONS,
    BY_RUN,
    BY_WORLD,
    Run,
    World,
    fill,
    leave_open,
    left_over,
    named,
)
from mainspring.arguments.deepspeed.reading import read_config, section, setting
from mainspring.arguments.idle import differs_from_default
from mainspring.arguments.parallel_sizes import ParallelSizes, parallel_sizes
from mainspring.arguments.sources import Sourced
from mainspring.errors import OptionError, Problem

ANY_OPTIMIZER = "zero_allow_untested_optimizer"
"""Whether ZeRO divides the states of optimizers that DeepSpeed has not tried: its own list of them is short."""


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A DeepSpeed configuration, filled in from the options as far as these know.

    Attributes:
        config: The configuration. What only training knows is "auto" until `completed`.
        origins: What the values followed from that the configuration left to the options, by dotted path.
        said_by: The launcher's variables that values were taken over from, by dotted path.
        published: What users read as `args.hf_deepspeed_config`: it follows.
        sources: Where the options' own values came from, by their names; none for arguments that keep no record.
    """

    config: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)
    said_by: Mapping[str, str] = field(default_factory=dict)
    published: Any = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def stage(self) -> int:
        """How much ZeRO divides over the processes: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
        return rules.stage_of(self.config)

    @property
    def makes_optimizer(self) -> bool:
        """Whether the configuration has an optimizer, which DeepSpeed then makes."""
        return "optimizer" in self.config

    @property
    def makes_schedule(self) -> bool:
        """Whether the configuration has a schedule, which DeepSpeed then makes and moves."""
        return "scheduler" in self.config

    @property
    def gathers_weights(self) -> bool:
        """Whether checkpoints of stage 3 hold whole weights beside the pieces."""
        return rules.gathers_weights(self.config)

    @property
    def precision(self) -> str:
        """What the model computes in: bf16, fp16 or fp32."""
        chosen = (name for name in ("bf16", "fp16") if setting(self.config, f"{name}.enabled") is True)
        return next(chosen, "fp32")

    def sizes(self, given: ParallelSizes | None, processes: int) -> ParallelSizes | None:
        """How the processes share the run: as the options say, or else as the configuration does (AutoTP).

        Args:
            given: What the options say; None: nothing.
            processes: How many there are.
        """
        tensor = rules.tensor_parallel_size(self.config)
        if given is not None or tensor == 1:
            return given
        return ParallelSizes(tp_size=tensor, dp_replicate_size=max(1, processes // tensor))

    def with_any_optimizer(self) -> DeepSpeedSettings:
        """The same, allowing optimizers that DeepSpeed has not tried where it makes none: the choice is made elsewhere."""
        if self.makes_optimizer or self.stage == 0 or ANY_OPTIMIZER in self.config:
            return self
        origins = {**self.origins, ANY_OPTIMIZER: "the optimizer is not in the configuration"}
        return replace(self, config={**self.config, ANY_OPTIMIZER: True}, origins=origins)

    def completed(self, hidden_size: int | None, total_steps: int, warmup_steps: int) -> dict[str, Any]:
        """The configuration that the engine starts with.

        Args:
            hidden_size: Of the model; None where it does not say.
            total_steps: Updates of the run.
            warmup_steps: Those of them that warm up.

        Raises:
            OptionError: What contradicts the options, all of it; or what cannot be filled in.
        """
        whole = self.at(Run(hidden_size, total_steps, warmup_steps))
        config = copy.deepcopy(dict(whole.config))
        if self.published is not None:
            self.published.config = copy.deepcopy(config)
        return config

    def for_evaluation(self, hidden_size: int | None) -> dict[str, Any]:
        """The configuration of an engine that does not train: it has neither optimizer nor schedule.

        Args:
            hidden_size: Of the model; None where it does not say.

        Raises:
            OptionError: What cannot be filled in.
        """
        config = {name: value for name, value in self.config.items() if name not in ("optimizer", "scheduler")}
        whole = replace(self, config=config).at(Run(hidden_size, 0, 0))
        return dict(whole.config)

    def at(self, run: Run) -> DeepSpeedSettings:
        """These settings with what a run knows.

        Raises:
            OptionError: What contradicts the options, all of it; or what cannot be filled in.
        """
        config = copy.deepcopy(dict(self.config))
        origins, problems = fill(config, BY_RUN, run, self.said_by)
        if problems:
            raise OptionError(problems)
        return replace(self, config=config, origins={**self.origins, **origins})


class Facts:
    """The arguments as the rows and the rules read them.

    Args:
        args: Arguments of any class, ours or the reference's.
        config: The configuration, as it was given.
    """

    def __init__(self, args: Any, config: Mapping[str, Any]) -> None:
        self._args = args
        self._tensor = rules.tensor_parallel_size(config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._args, name, None)

    @property
    def parallel_sizes(self) -> ParallelSizes | None:
        """How the processes share the run; None where nobody says. Without the option, the configuration may divide layers."""
        said = parallel_sizes(self._args)
        return ParallelSizes(tp_size=self._tensor) if said is None and self._tensor > 1 else said

    @property
    def mixed_precision(self) -> str:
        """What the options say, or else the launcher."""
        if self._args.bf16 or self._args.fp16:
            return "bf16" if self._args.bf16 else "fp16"
        return os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()

    @property
    def clips_by_option(self) -> bool:
        """Whether a configuration that does not speak of clipping clips by `max_grad_norm`."""
        from mainspring.arguments.compat import BEHAVIOURS  # which optional parts of the arguments read

        return BEHAVIOURS[getattr(self._args, "compat", "none")].clip_by_option

    def chose(self, option: str) -> bool:
        """Whether the user chose the value of an option."""
        return hasattr(self._args, "_was_given") and differs_from_default(self._args, option)


def settings_of_options(args: Any) -> tuple[DeepSpeedSettings | None, list[Problem]]:
    """The configuration as far as the options and the launcher know it, and everything that is wrong with it.

    No process or device is asked. Without DeepSpeed there is none.

    Args:
        args: Arguments of any class, ours or the reference's.
    """
    given = getattr(args, "deepspeed", None)
    if not given and not launcher.asks():
        return None, []
    config, problem = read_config("deepspeed", given or {})
    if problem is not None:
        return None, [problem]
    config = words.without_empty(config)
    launched, problems = launcher.said()
    said_by, found = launcher.take_over(config, launched)
    problems += found
    facts = Facts(args, config)
    problems += words.no_sections(config)
    leave_open(config, BY_OPTIONS, facts)
    leave_open(config, BY_WORLD, facts)
    origins, found = fill(config, BY_OPTIONS, facts, said_by)
    problems += found
    problems += _of_known_run(config, args, said_by)
    for check in (words.unknown_keys, words.unknown_values, words.unknown_schedule, words.unknown_optimizer, left_over):
        problems += check(config)
    problems += [problem for rule in rules.RULES for problem in rule(config, facts)]
    if section(config, "amp").get("enabled") is False:  # the section alone is more than newer versions accept
        del config["amp"]
    published = getattr(args, "hf_deepspeed_config", None)
    return DeepSpeedSettings(config, origins, said_by, published, _sources(args)), problems


def _of_known_run(config: Mapping[str, Any], args: Any, said_by: Mapping[str, str]) -> list[Problem]:
    """What contradicts the length of the run, as far as the options alone say it. Only training fills it in."""
    run = Run(None, args.max_steps, args.get_warmup_steps(max(args.max_steps, 0)))
    long = args.max_steps > 0
    known = {"scheduler.params.total_num_steps": long, _WARMUP: long or args.warmup_steps >= 1}
    rows = [row for row in BY_RUN if known.get(row.path)]
    return fill(copy.deepcopy(dict(config)), rows, run, said_by)[1]


_WARMUP = "scheduler.params.warmup_num_steps"


def _sources(args: Any) -> dict[str, str]:
    """Where the values of options came from, by their names."""
    if not isinstance(args, Sourced):
        return {}
    found = dict.fromkeys((one.name for one in fields(args)), "default")  # type: ignore[arg-type]
    for name, origin in args._known_origins.items():
        found[name] = ", ".join(filter(None, (origin.source, origin.note))) or "default"
    return found


def notices(args: Any, settings: DeepSpeedSettings) -> list[Problem]:
    """What does nothing in a configuration, or beside it."""
    facts = Facts(args, settings.config)
    return [problem for rule in rules.NOTICES for problem in rule(settings.config, facts)]


def in_world(settings: DeepSpeedSettings, args: Any, processes: int) -> tuple[DeepSpeedSettings, list[Problem]]:
    """The same, with what follows from how many processes there are; and what contradicts that.

    Args:
        settings: What the options know.
        args: The arguments.
        processes: How many there are.
    """
    sizes = settings.sizes(parallel_sizes(args), processes)
    each = 1 if sizes is None else sizes.tp_size * sizes.cp_size * sizes.sp_size
    world = World(max(1, processes // each), args.per_device_train_batch_size, args.gradient_accumulation_steps)
    config = copy.deepcopy(dict(settings.config))
    origins, problems = fill(config, BY_WORLD, world, settings.said_by)
    part = setting(config, "zero_optimization.zero_hpz_partition_size")
    if settings.stage == 3 and isinstance(part, int) and part > 1 and processes % part:
        why = f"the run has {processes} process{'es' if processes > 1 else ''}, which that does not divide"
        path = named("zero_optimization.zero_hpz_partition_size")
        problems.append(Problem(path, part, why, "give the processes of one machine"))
    return replace(settings, config=config, origins={**settings.origins, **origins}), problems


def deepspeed_settings(args: Any) -> DeepSpeedSettings | None:
    """The DeepSpeed configuration of these arguments; None where neither they nor the launcher ask for DeepSpeed.

    Raises:
        OptionError: A configuration that cannot be read, or that contradicts the options: all of it in one error.
    """
    settings, problems = settings_of_options(args)
    if settings is not None:
        settings, found = in_world(settings, args, args.world_size)
        problems += found
    if problems:
        raise OptionError(problems)
    if settings is not None and settings.published is not None:
        settings.published.config = copy.deepcopy(dict(settings.config))
    return settings


def announced_processes() -> int | None:
    """How many processes the launcher has started, by its variables; None: there is none. No group of them is formed."""
    said = launchers.torch_words(os.environ).get("WORLD_SIZE") or os.environ.get("WORLD_SIZE", "")
    return int(said) if said.isdecimal() else None
