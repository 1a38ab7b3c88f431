"""Whether a batch gives the same gradient however it is split, measured on a trainer's own loss."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mainspring.diagnostics.deviations import Invariance, SplitDeviation
from mainspring.diagnostics.kept import as_before
from mainspring.diagnostics.rows import joined, part_of, rows_of
from mainspring.model import unwrap
from mainspring.seams import adapt

if TYPE_CHECKING:
    from mainspring.trainer import Trainer

_NEGLIGIBLE = 0.01
"""A parameter whose gradient is below this share of the whole one is measured by that share: the rest is rounding."""

_TOLERANCE = 1e-4
_TOLERANCE_OF_HALF_PRECISION = 5e-2

Gradients = dict[str, Tensor]


def grad_invariance(
    trainer: Trainer, *, tolerance: float | None = None, batch: Any = None, file: TextIO | None = None
) -> Invariance:
    """Measure whether the trainer's loss gives a batch the same gradient whole and in micro-batches, and print it.

    The samples of one update are taken from the training data. Their gradient is computed through `get_batch_samples`
    and `training_step`: as one batch, in halves, in single samples and in uneven parts. The model runs without dropout,
    as it is evaluated. Weights, gradients, buffers, random states and the trainer's state are afterwards what they were.

    Args:
        trainer: Of one process.
        tolerance: Up to which relative deviation gradients count as equal. Default: 1e-4 in fp32, 0.05 else.
        batch: The batch to measure with, instead of one from the training data.
        file: Where to print; default: standard output.

    Returns:
        The deviations; `ok` says whether all are within the tolerance.

    Raises:
        ValueError: There is no batch of several samples, it cannot be cut into samples, or nothing has a gradient.
        RuntimeError: The trainer is one of several processes, or its model lies in pieces.
    """
    _refuse_processes(trainer)
    model = unwrap(trainer._engine.place(trainer.model))
    with as_before(model, trainer._is_distributed()), _apart(trainer), _without_dropout(model):
        whole = _global_batch(trainer) if batch is None else [batch]
        ways = list(_splits(whole))
        expected = _gradient(trainer, model, whole)
        splits = [_compared(name, sizes, _gradient(trainer, model, parts), expected) for name, sizes, parts in ways]
    report = Invariance(
        tuple(splits), _tolerance(model, trainer) if tolerance is None else tolerance, tuple(_notes(model, whole))
    )
    (file or sys.stdout).write(f"{report}\n")
    return report


def _refuse_processes(trainer: Trainer) -> None:
    engine = trainer._engine
    if engine.world_size > 1 or engine.replaces_parameters:
        raise RuntimeError(
            f"grad_invariance measures in one process with a whole model, and this is the engine {engine.kind!r} with "
            f"{engine.world_size} processes: call it in a script that was started as one process"
        )


# ---- the batch and its parts ----


def _global_batch(trainer: Trainer) -> list[Any]:
    """The samples of one update, as one batch where they fit together."""
    reader = iter(trainer.get_train_dataloader())
    size = trainer.args.gradient_accumulation_steps
    batches, _ = trainer.get_batch_samples(reader, size, trainer._engine.device)
    if not batches:
        raise ValueError("grad_invariance: the training data gives no batch")
    one = joined(batches)
    return list(batches) if one is None else [one]


def _splits(whole: Sequence[Any]) -> Iterator[tuple[str, tuple[int, ...], list[Any]]]:
    """The ways to split, each with the samples of its micro-batches."""
    rows = [_rows(batch) for batch in whole]
    if max(rows) < 2:
        raise ValueError(
            "grad_invariance: a batch of one sample cannot be split; set per_device_train_batch_size above 1, or pass batch"
        )
    seen = set()
    for name, cut in (("halves", _halves), ("singles", _singles), ("uneven", _uneven)):
        sizes = tuple(size for count in rows for size in cut(count))
        if sizes not in seen:
            seen.add(sizes)
            yield (
                name,
                sizes,
                [part for batch, count in zip(whole, rows, strict=True) for part in _cut(batch, cut(count))],
            )


def _rows(batch: Any) -> int:
    found = rows_of(batch)
    if not found:
        raise ValueError("grad_invariance: the batch has no tensor, so that its samples cannot be told")
    return found


def _halves(rows: int) -> list[int]:
    return [rows - rows // 2, rows // 2] if rows > 1 else [rows]


def _singles(rows: int) -> list[int]:
    return [1] * rows


def _uneven(rows: int) -> list[int]:
    """1, 2, 4, ... and the rest."""
    sizes, size = [], 1
    while rows > 0:
        sizes.append(min(size, rows))
        rows, size = rows - size, size * 2
    return sizes[::-1]


def _cut(batch: Any, sizes: Sequence[int]) -> list[Any]:
    rows, start, parts = sum(sizes), 0, []
    for size in sizes:
        parts.append(part_of(batch, rows, start, start + size))
        start += size
    return parts


# ---- the gradient ----


def _gradient(trainer: Trainer, model: nn.Module, micro_batches: Sequence[Any]) -> Gradients:
    """What an update of these micro-batches would step with."""
    for parameter in model.parameters():
        parameter.grad = None
    trainer._normalises = None
    trainer._agreed = None
    batches, items = trainer.get_batch_samples(iter(micro_batches), len(micro_batches), trainer._engine.device)
    trainer.current_gradient_accumulation_steps = len(batches)
    trainer._weigh(batches)
    step = adapt(trainer.training_step, ("model", "inputs", "num_items_in_batch"))
    for number, batch in enumerate(batches, 1):
        with trainer._engine.accumulate(model, number == len(batches)):
            step(model, batch, items)
    return {
        name: parameter.grad.detach().double()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def _compared(name: str, sizes: tuple[int, ...], found: Gradients, expected: Gradients) -> SplitDeviation:
    length = math.sqrt(sum(float(one.square().sum()) for one in expected.values()))
    if length == 0:
        raise ValueError("grad_invariance: no parameter has a gradient, so that there is nothing to compare")
    deviations = {
        key: _norm(found[key] - one if key in found else one) / max(_norm(one), _NEGLIGIBLE * length)
        for key, one in expected.items()
    }
    worst = max(deviations, key=lambda key: math.inf if math.isnan(deviations[key]) else deviations[key])
    along = sum(float((found[key] * one).sum()) for key, one in expected.items() if key in found)
    return SplitDeviation(name, sizes, deviations[worst], worst, along / length**2)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


# ---- around it ----


@contextlib.contextmanager
def _apart(trainer: Trainer) -> Iterator[None]:
    """The body leaves no trace in the trainer, and no optimizer acts in its backward passes."""
    engine, gradients = trainer._engine, trainer.accelerator.gradient_state
    own, state, optimizer, sync = (
        dict(vars(trainer)),
        copy.copy(trainer.state),
        engine.optimizer,
        gradients.sync_gradients,
    )
    logged = len(trainer.state.log_history)
    trainer.optimizer = engine.optimizer = None
    try:
        yield
    finally:
        vars(trainer).clear()
        vars(trainer).update(own)
        vars(trainer.state).update(vars(state))
        del trainer.state.log_history[logged:]
        engine.optimizer = optimizer
        gradients._set_sync_gradients(sync)


@contextlib.contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Every forward pass of the body runs in evaluation mode, whatever mode was set before it."""
    recurrent = [(module, module.dropout) for module in model.modules() if isinstance(module, nn.RNNBase)]
    for module, _ in recurrent:
        module.dropout = 0.0

    def evaluate(module: nn.Module, _: Any) -> None:
        module.eval()
        for inner, _ in recurrent:
            inner.training = True  # cuDNN has no backward pass of theirs otherwise

    handle = model.register_forward_pre_hook(evaluate)
    try:
        yield
    finally:
        handle.remove()
        for module, dropout in recurrent:
            module.dropout = dropout


def _tolerance(model: nn.Module, trainer: Trainer) -> float:
    whole = trainer.accelerator.mixed_precision == "no" and all(
        parameter.dtype in (torch.float32, torch.float64) for parameter in model.parameters()
    )
    return _TOLERANCE if whole else _TOLERANCE_OF_HALF_PRECISION


def _notes(model: nn.Module, whole: Sequence[Any]) -> Iterator[str]:
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        yield (
            "the model has batch normalisation, which in training takes its statistics from each micro-batch: its "
            "gradients do depend on the split. Measured was the rest, with the statistics of evaluation"
        )
    if len(whole) > 1:
        yield (
            f"the {len(whole)} micro-batches of the update do not fit together as one batch: they were compared as they are"
        )
