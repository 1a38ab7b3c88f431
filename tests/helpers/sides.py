"""The two libraries a test compares: the reference and the one under test.

`MAINSPRING_TEST_SUBJECT=transformers pytest tests/parity tests/contract` aims the suites at the reference itself. A
test that fails there is wrong about the reference, not a finding about Mainspring.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

SUBJECT_VARIABLE = "MAINSPRING_TEST_SUBJECT"

QUIET: Mapping[str, object] = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-2,
}
"""Options of every test run: one CPU process, nothing reported, every update logged, nothing saved."""


@dataclass(frozen=True)
class Side:
    """One library: where it is imported from and which options only it takes.

    Attributes:
        name: What messages call it.
        package: Import name of the library.
        own_options: Options passed to its `TrainingArguments` and to no other's.
    """

    name: str
    package: str
    own_options: Mapping[str, object] = field(default_factory=dict)

    @property
    def api(self) -> Any:
        """The library's top-level module."""
        return self.module()

    @property
    def is_reference(self) -> bool:
        """Whether this side is the reference library."""
        return self.package == "transformers"

    def module(self, name: str = "") -> Any:
        """Import the library, or its submodule `name` ("trainer_callback", ...)."""
        module: ModuleType = importlib.import_module(f"{self.package}.{name}" if name else self.package)
        return module

    def arguments(self, output_dir: object, /, **options: object) -> Any:
        """Build this side's `TrainingArguments` from the quiet defaults, its own options and `options`."""
        forget_process_state()
        merged = {**QUIET, **self.own_options, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return self.api.TrainingArguments(output_dir=str(output_dir), **merged)

    def __str__(self) -> str:
        return self.name


def forget_process_state() -> None:
    """Drop accelerate's process-wide singletons, so that one run's precision or device cannot leak into the next."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    if PartialState._shared_state.get("distributed_type", "NO") in ("NO", None):
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


def _subject() -> Side:
    package = os.environ.get(SUBJECT_VARIABLE, "mainspring")
    return Side(package, package, {"compat": "5"} if package == "mainspring" else {})


REFERENCE = Side("reference", "transformers")
SUBJECT = _subject()
