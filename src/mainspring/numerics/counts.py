"""How many updates since the last log had numbers that are not finite, or were clipped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FOLD = 1_000
"""Updates of which losses and norms are kept one by one; of more, four numbers each."""

_SMALL = 64
"""Bytes that a kept loss may hold on to: one that is a view of something larger is copied."""


class Counted(NamedTuple):
    """What was counted since the last log.

    Attributes:
        updates: Updates that were made.
        nonfinite: Updates, also those that were left out, with a loss or a gradient norm that is NaN or infinite.
        clipped: Updates whose gradients were above the limit before clipping.
        overflows: Updates that the scaling of fp16 left out: their losses are finite.
        skipped: Updates that were left out.
    """

    updates: int = 0
    nonfinite: int = 0
    clipped: int = 0
    overflows: int = 0
    skipped: int = 0

    def logs(self, clips: bool, scales: bool, skips: bool) -> dict[str, float]:
        """The same as it is logged.

        Args:
            clips: Whether gradients are clipped.
            scales: Whether losses are scaled, for fp16.
            skips: Whether updates can be left out.
        """
        logs: dict[str, float] = {"nonfinite_steps": self.nonfinite}
        if clips:
            logs["clipped_fraction"] = self.clipped / max(self.updates, 1)
        if scales:
            logs["overflow_steps"] = self.overflows
        if skips:
            logs["skipped_steps"] = self.skipped
        return logs


class UpdateCounts:
    """Keeps each update's losses and gradient norm where they are, and looks at them when a log asks.

    Adding computes nothing and waits for no device.

    Args:
        limit: The norm to which gradients are clipped; None: they are not.
        device: Where it is counted.
    """

    def __init__(self, limit: float | None, device: torch.device | str) -> None:
        self._limit = limit
        self._device = device
        self._losses: list[Tensor] = []  # of micro-batches
        self._ends: list[int] = []  # of each update: how many losses lie before its end
        self._norms: list[Any] = []
        self._scaled_down: list[int] = []  # numbers of the updates that the scaling of fp16 left out
        self._folded: list[Tensor] = []  # [3, updates]: not finite, clipped, overflow
        self._before = Counted()
        self._left_out = [0, 0]  # updates; those of them that were not finite

    def add(self, loss: Tensor) -> None:
        """Keep one micro-batch's loss, without its graph."""
        if loss.requires_grad:
            loss = loss.detach()
        if loss.untyped_storage().nbytes() > _SMALL:
            loss = loss.clone()
        self._losses.append(loss)

    def begin(self) -> None:
        """An update begins: forget the losses of one that was begun and never made."""
        closed = self._ends[-1] if self._ends else 0
        if len(self._losses) > closed:
            del self._losses[closed:]

    def begun(self) -> list[Tensor]:
        """The losses of the update under way, 0-d."""
        return [loss.reshape(()) for loss in self._losses[self._ends[-1] if self._ends else 0 :]]

    def end(self, norm: Any, scaled_down: bool = False) -> None:
        """An update was made.

        Args:
            norm: Its gradient norm before clipping, 0-d or a number; None where nobody measured it.
            scaled_down: Whether the scaling of fp16 left it out because of an overflow.
        """
        self._ends.append(len(self._losses))
        self._norms.append(norm)
        if scaled_down:
            self._scaled_down.append(len(self._ends) - 1)
        if len(self._ends) >= _FOLD:
            self._fold()

    def leave_out(self, nonfinite: bool) -> None:
        """The update under way is not made; all processes say so together."""
        self.begin()
        self._left_out[0] += 1
        self._left_out[1] += nonfinite

    def _fold(self) -> None:
        """Turn what is kept of each update into three numbers."""
        if not self._ends:
            return
        losses_bad = self._updates_with(self._losses[: self._ends[-1]], self._ends)
        norms = self._together(self._norms)
        overflow = torch.zeros_like(losses_bad)
        overflow[self._scaled_down] = True
        overflow &= ~losses_bad
        bad = losses_bad | (~norms.isfinite() & ~overflow)
        clipped = torch.zeros_like(bad) if self._limit is None else (norms > self._limit) & ~overflow
        self._folded.append(torch.stack([bad, clipped, overflow]))
        del self._losses[: self._ends[-1]]
        for kept in (self._ends, self._norms, self._scaled_down):
            kept.clear()

    def _together(self, values: Sequence[Any]) -> Tensor:
        """Values as one tensor where it is counted; a norm that nobody measured, None, is taken for fine."""
        with contextlib.suppress(RuntimeError, TypeError):  # they differ in shape or device; or are no tensors
            joined = torch.stack(list(values))
            if joined.numel() == len(values):
                return joined.reshape(-1).to(self._device)
        plain = (0.0 if value is None else value for value in values)
        return torch.stack(
            [torch.as_tensor(one, dtype=torch.float32, device=self._device).reshape(()) for one in plain]
        )

    def _updates_with(self, losses: Sequence[Tensor], ends: Sequence[int]) -> Tensor:
        """Which updates have a loss that is not finite."""
        if not losses:
            return torch.zeros(len(ends), dtype=torch.bool, device=self._device)
        bad = ~self._together(losses).isfinite()
        if list(ends) == list(range(1, len(ends) + 1)):  # one each
            return bad
        upto = torch.cat([bad.new_zeros(1, dtype=torch.int64), bad.cumsum(0)])
        last = torch.tensor([0, *ends], device=self._device)
        return upto[last].diff() > 0

    def read(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> Counted:
        """What was counted since the last log, by all processes: here the device is waited for.

        Args:
            sum_over_ranks: Sums a tensor over the processes. A loss may be infinite on one of them alone.
        """
        self._fold()
        before, (left_out, of_them_bad) = self._before, self._left_out
        if not self._folded:
            made = [0, 0, 0, 0]
        else:
            seen = sum_over_ranks(torch.cat(self._folded, dim=1).int()) > 0
            made = [seen.shape[1], *seen.sum(dim=1).tolist()]
        return Counted(
            before.updates + made[0],
            before.nonfinite + made[1] + of_them_bad,
            before.clipped + made[2],
            before.overflows + made[3],
            before.skipped + left_out,
        )

    def kept(self) -> tuple[Any, ...]:
        """What is counted now, for `put_back`."""
        lists: tuple[list[Any], ...] = (
            self._losses,
            self._ends,
            self._norms,
            self._scaled_down,
            self._folded,
            self._left_out,
        )
        return self._before, *(list(one) for one in lists)

    def put_back(self, kept: tuple[Any, ...]) -> None:
        """Count on from what `kept` gave."""
        self._before = kept[0]
        copies = [list(one) for one in kept[1:]]
        self._losses, self._ends, self._norms, self._scaled_down, self._folded, self._left_out = copies

    def restart(self, before: Counted = Counted()) -> None:  # noqa: B008 - it is immutable
        """Begin to count anew, with what was counted `before`."""
        for kept in (self._losses, self._ends, self._norms, self._scaled_down, self._folded):
            kept.clear()
        self._before, self._left_out = before, [0, 0]
