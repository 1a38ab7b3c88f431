"""The loss of an evaluation, in the two ways of averaging it that `eval_loss_reduction` tells apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mainspring.evaluation.batches import gathered
from mainspring.metrics import as_array

if TYPE_CHECKING:
    from mainspring.trainer import Trainer


class MeanOfItems:
    """The mean over label tokens, or over samples where nobody counts tokens; it is kept on the device.

    Each batch's loss is a mean over its own items; weighting it by their number makes the result the mean over all
    items, however they fall into batches and processes.
    """

    def __init__(self, trainer: Trainer, keep_finite: bool) -> None:
        self._trainer = trainer
        self._keep_finite = keep_finite
        self._by_token = trainer._evaluates_by_token()
        self._seen = False
        device = trainer._engine.device
        precise = torch.float32 if device.type == "mps" else torch.float64
        self._sum = torch.zeros((), dtype=precise, device=device)
        self._weight = torch.zeros((), dtype=precise, device=device)

    def add(self, loss: Tensor, held: int, counted: int) -> None:
        """Take in the loss of one batch of `held` rows, of which `counted` are no filling."""
        self._seen = True
        items = self._trainer._eval_items if self._by_token else None
        if items is None:
            self._add(loss, counted if held else 1, counted if held else 1)
        else:
            self._add(loss, items[1], items[0] if counted or not held else 0)

    def _add(self, loss: Tensor, scale: Tensor | float, weight: Tensor | float) -> None:
        """Add a batch: `loss * scale` is its sum over items, `weight` their number in this process."""
        loss = loss.to(self._sum)
        part, weight = loss * scale, torch.as_tensor(weight).to(self._sum)
        if self._keep_finite:
            finite = torch.isfinite(loss)
            part, weight = torch.where(finite, part, 0.0), torch.where(finite, weight, 0.0)
        self._sum += torch.where(weight > 0, part, 0.0)
        self._weight += weight

    def mean(self) -> float | None:
        """The loss of all processes; NaN where no item was counted, None where no batch had a loss."""
        if not self._seen:
            return None
        engine = self._trainer._engine
        total, weight = engine.sum(self._sum).item(), engine.sum(self._weight).item()
        return float(total / weight) if weight else math.nan


class MeanOfBatchMeans:
    """The mean of the batches' losses, weighted by their samples: the reference's, to the last bit.

    For that it is computed as there: of one number a sample, all of which are kept.
    """

    def __init__(self, trainer: Trainer, keep_finite: bool) -> None:
        self._trainer = trainer
        self._keep_finite = keep_finite
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor, held: int, counted: int) -> None:
        """Take in the loss of one batch of `held` rows. Gathering leaves out what is filling."""
        self._losses.append(gathered(self._trainer, loss.repeat(self._trainer._loss_copies(held))))

    def mean(self) -> float | None:
        """The loss of all processes; None where no batch had one. Infinite ones are left out where that is asked."""
        if not self._losses:
            return None
        array = np.concatenate([as_array(part) for part in self._losses])
        finite = np.isfinite(array)
        if self._keep_finite and finite.any():
            array = array[finite]
        return float(array.mean().item())


def losses_of(trainer: Trainer) -> MeanOfItems | MeanOfBatchMeans:
    """The losses of one evaluation, averaged as `eval_loss_reduction` says."""
    kind = MeanOfBatchMeans if trainer._own.eval_loss_reduction == "batch_mean" else MeanOfItems
    return kind(trainer, bool(trainer.args.logging_nan_inf_filter and trainer._own.finite_evaluations))
