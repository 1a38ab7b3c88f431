"""`AcceleratorConfig`: the settings of Accelerate's loaders, and which of their values hold here."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mainspring.arguments.normalise import read_record
from mainspring.errors import OptionError

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


AVAILABLE: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "split_batches": (False,),
        "dispatch_batches": (None, False),  # every process reads what is its own, whatever the kind of data
        "even_batches": (True,),
        "use_seedable_sampler": (True,),
        "non_blocking": (False, True),  # a copy from pinned memory never waits, and pageable memory cannot but
        "use_configured_state": (False,),
    }
)
"""The values that describe what is done here."""

_ACCUMULATION = {"adjust_scheduler": True, "sync_with_dataloader": True, "sync_each_batch": False}
"""As above, within `gradient_accumulation_kwargs`. These are Accelerate's own defaults."""


def unavailable_settings(config: Any) -> dict[str, Any]:
    """The settings of a configuration, an object or a mapping, that nothing here carries out yet."""
    given = dict(config if isinstance(config, Mapping) else getattr(config, "__dict__", {}))
    accumulation = given.pop("gradient_accumulation_kwargs", None) or {}
    found = {name: value for name, value in given.items() if value not in AVAILABLE.get(name, ())}
    beyond = {name: value for name, value in accumulation.items() if (name, value) not in _ACCUMULATION.items()}
    return {**found, "gradient_accumulation_kwargs": beyond} if beyond else found
