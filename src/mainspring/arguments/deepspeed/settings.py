"""`DeepSpeedSettings`: a DeepSpeed configuration in which the options have taken their places."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mainspring.arguments.deepspeed.filling import Run, fill, is_late, left_over
from mainspring.arguments.deepspeed.reading import put, read_config, setting
from mainspring.errors import OptionError, Problem


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A DeepSpeed configuration, filled in from the options as far as these know.

    Attributes:
        config: The configuration. What only training knows is "auto" until `completed`.
        origins: Where the values came from that the configuration left to the options, by dotted path.
    """

    config: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def stage(self) -> int:
        """How much ZeRO divides over the processes: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
        return int(setting(self.config, "zero_optimization.stage") or 0)

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
        return bool(setting(self.config, "zero_optimization.stage3_gather_16bit_weights_on_model_save"))

    @property
    def precision(self) -> str:
        """What the model computes in: bf16, fp16 or fp32."""
        chosen = (name for name in ("bf16", "fp16") if setting(self.config, f"{name}.enabled") is True)
        return next(chosen, "fp32")

    def completed(self, hidden_size: int | None, total_steps: int, warmup_steps: int) -> dict[str, Any]:
        """The configuration that the engine starts with.

        Args:
            hidden_size: Of the model; None where it does not say.
            total_steps: Updates of the run.
            warmup_steps: Those of them that warm up.

        Raises:
            OptionError: What contradicts the options, all of it; or what cannot be filled in.
        """
        config = copy.deepcopy(dict(self.config))
        _, problems = fill(config, Run(hidden_size, total_steps, warmup_steps), late=True)
        if problems:
            raise OptionError(problems)
        return config


def deepspeed_settings(args: Any) -> DeepSpeedSettings | None:
    """The DeepSpeed configuration of these arguments; None where DeepSpeed was not asked for.

    Raises:
        OptionError: A configuration that cannot be read, or that contradicts the options: all of it in one error.
    """
    given = getattr(args, "deepspeed", None)
    if not given:
        return None
    config, problem = read_config("deepspeed", given)
    if problem is not None:
        raise OptionError([problem])
    _add_precision(config, args)
    origins, problems = fill(config, args, late=False)
    problems += [one for one in left_over(config) if not is_late(one.option.removeprefix("deepspeed "))]
    if setting(config, "fp16.enabled") is True and setting(config, "bf16.enabled") is True:
        problems.append(Problem("deepspeed bf16.enabled", True, "fp16.enabled is true too", "choose one of them"))
    if problems:
        raise OptionError(problems)
    return DeepSpeedSettings(config, origins)


def _add_precision(config: dict[str, Any], args: Any) -> None:
    """A precision that only the options name is one that the configuration does not exclude."""
    for name in ("bf16", "fp16"):
        if getattr(args, name, False) and name not in config:
            put(config, f"{name}.enabled", "auto")
