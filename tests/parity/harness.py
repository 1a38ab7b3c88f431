"""Run one case on one library, record what it produced, and say where two records differ."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.helpers.sides import Side

CLOCK_ENDINGS = ("_runtime", "_per_second", "_preparation_time", "_wait_fraction")
"""Endings of the keys that hold wall-clock measurements, which no two runs share."""

TAKEN_BY_A_DISPLAY = ("total_flos",)
"""Keys that the reference's printing callback takes out of the metrics which `train` then returns: a fault not to copy.
They are compared in the logs and in the state, where both libraries have them."""

SEED_OF_MODELS = 1234


@dataclass(frozen=True)
class Task:
    """What a script passes to the Trainer besides its arguments. Built anew for every run.

    Attributes:
        model: Builds the model (called after the seeds are set).
        inputs: Builds the other constructor arguments: datasets, collator, metrics, callbacks, for one side.
        trainer: Gives the class to instantiate: the side's Trainer, or a script's subclass of it.
    """

    model: Callable[[], Any]
    inputs: Callable[[Side], dict[str, Any]]
    trainer: Callable[[Side], Any] = lambda side: side.api.Trainer


Build = Callable[..., Any]
"""`build(**more_options)`: a new Trainer with a new model, as a script starts one."""

Drive = Callable[[Side, Build], tuple[Any, Any]]
"""`drive(side, build)`: does what the script does with its Trainer; gives it back with whatever else to compare."""


def train(side: Side, build: Build) -> tuple[Any, Any]:
    """The plain script: build a Trainer and train once."""
    trainer = build()
    return trainer, trainer.train()


@dataclass(frozen=True)
class Case:
    """One set of options whose numbers must agree.

    Attributes:
        name: Identifies the case in the test report.
        task: Model, data and callables.
        options: Arguments of both sides.
        off: Options under which the feature of this case is absent. The reference must then give other numbers: this
            proves that the case measures its feature.
        spelled: Options as the side under test gets them, where the point is an older spelling the reference dropped.
        drive: What the script does.
        tolerance: Largest relative difference of any number; 0 means bit for bit.
        why: Why `tolerance` is not 0, or why `off` is empty.
    """

    name: str
    task: Task
    options: Mapping[str, Any] = field(default_factory=dict)
    off: Mapping[str, Any] = field(default_factory=dict)
    spelled: Mapping[str, Any] | None = None
    drive: Drive = train
    tolerance: float = 0.0
    why: str = ""

    def __post_init__(self) -> None:
        if (self.tolerance or not self.off) and not self.why:
            raise ValueError(f"case {self.name!r}: say why it has a tolerance or nothing to switch off")

    def without_its_feature(self) -> Case:
        """The same case with its feature switched off."""
        return dataclasses.replace(self, options={**self.options, **self.off})


@dataclass
class Trace:
    """Everything of a run that must be equal.

    Attributes:
        logs: `log_history` without clock readings: losses, learning rates, gradient norms, epochs, steps, metrics.
        output: What `drive` returned (by default the training's TrainOutput), without clock readings.
        state: The other fields of `trainer.state`.
        weights: The final state dict.
        checkpoints: Names of the checkpoint folders that are left.
        random_state: Torch's global stream at the end: equal only if every draw was made by both.
    """

    logs: list[dict[str, Any]]
    output: Any
    state: dict[str, Any]
    weights: dict[str, Tensor]
    checkpoints: list[str]
    random_state: Tensor


def run(side: Side, case: Case, folder: Path) -> Trace:
    """Run `case` on `side` with everything built anew and the seeds set.

    Args:
        side: The library.
        case: What to run.
        folder: Output folder of this run; empty.

    Returns:
        The record of the run.
    """
    torch.set_num_threads(1)
    options = case.options if side.is_reference or case.spelled is None else case.spelled

    def build(**more: Any) -> Any:
        seed_all(SEED_OF_MODELS)
        model = case.task.model()
        inputs = case.task.inputs(side)
        args = side.arguments(folder, **{**options, **more})
        return case.task.trainer(side)(model=model, args=args, **inputs)

    trainer, output = case.drive(side, build)
    return record(trainer, output, folder)


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global streams."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def record(trainer: Any, output: Any, folder: Path) -> Trace:
    """Copy out of a finished Trainer what `Trace` holds."""
    state = {entry.name: getattr(trainer.state, entry.name) for entry in dataclasses.fields(trainer.state)}
    logs = state.pop("log_history")
    best = state.get("best_model_checkpoint")
    state["best_model_checkpoint"] = best and Path(best).relative_to(folder).as_posix()
    return Trace(
        logs=without_clock(logs),
        output=without_keys(without_clock(as_plain(output)), TAKEN_BY_A_DISPLAY),
        state=copy.deepcopy(state),
        weights={name: value.detach().clone() for name, value in trainer.model.state_dict().items()},
        checkpoints=sorted(path.name for path in folder.glob("checkpoint-*")),
        random_state=torch.get_rng_state(),
    )


def as_plain(value: Any) -> Any:
    """Turn named tuples and tuples into lists, so that the two libraries' result classes compare by content."""
    if isinstance(value, Mapping):
        return {key: as_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(entry) for entry in value]
    return value


def without_clock(value: Any) -> Any:
    """Drop every wall-clock reading from nested mappings and lists."""
    return without_keys(value, CLOCK_ENDINGS)


def without_keys(value: Any, endings: tuple[str, ...]) -> Any:
    """Drop the keys with these endings from nested mappings and lists."""
    if isinstance(value, Mapping):
        return {k: without_keys(v, endings) for k, v in value.items() if not str(k).endswith(endings)}
    if isinstance(value, list):
        return [without_keys(entry, endings) for entry in value]
    return value


def differences(expected: Trace, actual: Trace, tolerance: float = 0.0) -> list[str]:
    """Name every place where `actual` is not `expected`, most telling first (the first wrong log, then the end state).

    Args:
        expected: The reference's record.
        actual: The record under test.
        tolerance: Largest relative difference of a number; 0 asks for equal bits.

    Returns:
        One line per difference; empty when there is none.
    """
    pairs = [
        (entry.name, getattr(expected, entry.name), getattr(actual, entry.name)) for entry in dataclasses.fields(Trace)
    ]
    return [line for name, left, right in pairs for line in _differences(name, left, right, tolerance)]


def _differences(place: str, expected: Any, actual: Any, tolerance: float) -> Iterator[str]:
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        for key in sorted({*expected, *actual}, key=str):
            if key not in expected or key not in actual:
                side = "unexpected" if key in actual else "missing"
                yield f"{place}[{key!r}] is {side}: {(actual if key in actual else expected)[key]!r:.80}"
            else:
                yield from _differences(f"{place}[{key!r}]", expected[key], actual[key], tolerance)
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            yield f"{place} has {len(actual)} entries, expected {len(expected)}"
        for index, (left, right) in enumerate(zip(expected, actual, strict=False)):
            yield from _differences(f"{place}[{index}]", left, right, tolerance)
    elif isinstance(expected, (Tensor, np.ndarray)) and isinstance(actual, (Tensor, np.ndarray)):
        yield from _array_differences(place, expected, actual, tolerance)
    elif not _equal(expected, actual, tolerance):
        yield f"{place}: expected {expected!r}, got {actual!r}"


def _array_differences(place: str, expected: Any, actual: Any, tolerance: float) -> Iterator[str]:
    left, right = torch.as_tensor(expected), torch.as_tensor(actual)
    if type(expected) is not type(actual) or left.shape != right.shape or left.dtype != right.dtype:
        was, now = (f"{type(v).__name__} {tuple(v.shape)} {v.dtype}" for v in (expected, actual))
        yield f"{place}: expected {was}, got {now}"
    elif not torch.allclose(left.double(), right.double(), rtol=tolerance, atol=tolerance * 1e-2, equal_nan=True):
        largest = (left.double() - right.double()).abs().max().item()
        yield f"{place}: differs by up to {largest:.3g}"


def _equal(expected: Any, actual: Any, tolerance: float) -> bool:
    if isinstance(expected, float) and isinstance(actual, float):
        if math.isnan(expected) or math.isnan(actual):
            return math.isnan(expected) and math.isnan(actual)
        return math.isclose(expected, actual, rel_tol=tolerance, abs_tol=tolerance * 1e-2)
    return type(expected) is type(actual) and bool(expected == actual)
