"""`AcceleratorConfig`: the settings of Accelerate's loaders."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mainspring.arguments.normalise import read_record
from mainspring.errors import OptionError, Problem, did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class AcceleratorConfig:
    """How batches are shared by processes and moved to the device; `TrainingArguments(accelerator_config=...)`.

    Attributes:
        split_batches: Whether a batch is divided among the processes, rather than each having one of that size.
        dispatch_batches: Whether the first process reads for all; None leaves it to the kind of data.
        even_batches: Whether the last round is completed with samples from the start of the epoch, so that every
            process has as many batches.
        use_seedable_sampler: Whether the order is a function of seed and epoch.
        non_blocking: Whether copies from pinned memory to the device do not wait.
        gradient_accumulation_kwargs: Keywords of Accelerate's `GradientAccumulationPlugin`.
        use_configured_state: Whether an Accelerate state that a script has made before is kept.
    """

    split_batches: bool = False
    dispatch_batches: bool | None = None
    even_batches: bool = True
    use_seedable_sampler: bool = True
    non_blocking: bool = False
    gradient_accumulation_kwargs: dict[str, Any] | None = None
    use_configured_state: bool = False

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """Read the settings from a file.

        Raises:
            OptionError: The file cannot be read, is not JSON, or holds settings that are none.
        """
        config, problems = read_record("json_file", json_file, frozenset({str, dict}), cls)
        if problems:
            raise OptionError(problems)
        settings: Self = config
        return settings

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return copy.deepcopy({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


ACCUMULATION: Mapping[str, bool | None] = MappingProxyType(
    {"adjust_scheduler": True, "sync_with_dataloader": True, "sync_each_batch": False}
)
"""What `gradient_accumulation_kwargs` may hold besides `num_steps`, with Accelerate's defaults."""


def settings_of(config: Any) -> AcceleratorConfig:
    """The settings in an option's value, of whatever class; Accelerate's defaults where there are none."""
    given = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    names = {field.name for field in dataclasses.fields(AcceleratorConfig)}
    return AcceleratorConfig(**{name: value for name, value in dict(given).items() if name in names})


def accumulated(settings: AcceleratorConfig) -> int | None:
    """Micro-batches of an update, where the settings say how many."""
    steps: int | None = (settings.gradient_accumulation_kwargs or {}).get("num_steps")
    return steps


def problems_of(settings: AcceleratorConfig, gradient_accumulation_steps: int) -> list[Problem]:
    """What is wrong with `gradient_accumulation_kwargs`, by itself and beside the option that says the same."""
    given = settings.gradient_accumulation_kwargs or {}
    known = ("num_steps", *ACCUMULATION)
    problems = []
    for key, value in given.items():
        setting = {"gradient_accumulation_kwargs": {key: value}}
        if key not in known:
            fix = f"leave it out{did_you_mean(str(key), known)}"
            problems.append(Problem(_NAME, setting, "there is no such keyword", fix))
        elif key == "num_steps" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            problems.append(Problem(_NAME, setting, "is no number of micro-batches", "give a whole number above 0"))
        elif key == "num_steps" and gradient_accumulation_steps not in (1, value):
            why = f"gradient_accumulation_steps is {gradient_accumulation_steps}"
            problems.append(Problem(_NAME, setting, why, "give one of the two"))
        elif key != "num_steps" and value not in (True, False, None):
            problems.append(Problem(_NAME, setting, "is neither True nor False", "give one of them"))
    return problems


_NAME = "accelerator_config"
