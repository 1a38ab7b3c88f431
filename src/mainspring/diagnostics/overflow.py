"""Magnitudes of all that goes in and out of every module, the last of them kept, until something is not finite."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.diagnostics.taps import Call, Taps
from mainspring.diagnostics.values import elements, leaves, tensors

_HEADER = f"{'abs min':8} {'abs max':8} metadata"
_INDENT = " " * 17


class DebugUnderflowOverflow:
    """Watch every module of a model, and end the run where a value is no longer finite.

    A frame is what one module did: its name and class, and the smallest and largest magnitude of its weights, inputs
    and output. On the first NaN or infinity the last frames are printed, and an error names the module. Frames of the
    backward pass have the gradients, in their own list, which is printed after that of the forward pass.

    Each batch is one call of the model; they are counted from 0.

    Args:
        model: The model, without wrappers of processes or devices.
        max_frames_to_save: How many frames are kept, of each pass.
        trace_batch_nums: Batches whose frames are printed as they come, whatever is in them.
        abort_after_batch_num: The batch after which the run is ended; None: none.
        gradients: Whether the backward pass is watched too. Not with a loss scale, which is found by overflows.

    Attributes:
        batch_number: Batches that are done.
        detected_overflow: Whether something was not finite.

    Raises:
        ValueError: In a forward or backward pass, for the reasons above.
    """

    def __init__(
        self,
        model: nn.Module,
        max_frames_to_save: int = 21,
        trace_batch_nums: Sequence[int] | None = None,
        abort_after_batch_num: int | None = None,
        *,
        gradients: bool = True,
    ) -> None:
        self.model = model
        self.trace_batch_nums = list(trace_batch_nums or ())
        self.abort_after_batch_num = abort_after_batch_num
        self.batch_number = 0
        self.detected_overflow = False
        self._forward: deque[str] = deque(maxlen=max_frames_to_save)
        self._backward: deque[str] = deque(maxlen=max_frames_to_save)
        self._heads: list[str] = self._beginning()
        self._open: _Frame | None = None  # the gradients that come now
        self._taps = Taps(model, self, gradients=gradients)

    def remove(self) -> None:
        """Take the hooks away: the model is what it was."""
        self._close_backward()
        self._taps.remove()

    # ---- what the taps tell ----

    def entered(self, call: Call) -> None:
        """A new pass ends the frame of the last gradients."""
        self._close_backward()

    def left(self, call: Call) -> None:
        """A module's forward is done: one frame."""
        batch = self.batch_number
        frame = _Frame(call.name, call.module_class)
        for name, parameter in call.module.named_parameters(recurse=False):
            frame.add(parameter, name)
        for index, value in enumerate(call.args):
            frame.add(value, f"input[{index}]")
        for place, tensor in tensors(call.kwargs, "input"):
            frame.show(tensor, place)
        for place, value in leaves(call.output, "output"):
            frame.add(value, place)
        self._keep([*self._heads, *frame.lines], self._forward, batch)
        self._heads = []
        if call.module is self.model:
            self.batch_number += 1
            self._heads = self._beginning()
        self._judge(frame, batch, "forward")
        if self.abort_after_batch_num is not None and self.batch_number > self.abort_after_batch_num:
            raise ValueError(
                f"DebugUnderflowOverflow: ended after {self.batch_number} batches, as "
                f"abort_after_batch_num={self.abort_after_batch_num} asks for"
            )

    def flowed(self, call: Call, place: str, gradient: Tensor) -> None:
        """A gradient of an input or output."""
        self._add_gradient(call.name, call.module_class, place, gradient)

    def reached(self, module: nn.Module, name: str, place: str, gradient: Tensor) -> None:
        """A gradient of a parameter."""
        self._add_gradient(name, type(module).__name__, place, gradient)

    # ---- frames ----

    def _beginning(self) -> list[str]:
        return [f"\n\n{_INDENT} *** Starting batch number={self.batch_number} ***", _HEADER]

    def _keep(self, lines: list[str], frames: deque[str], batch: int) -> None:
        """Keep a frame; in a batch that is traced, print it instead."""
        text = "\n".join(lines)
        if batch in self.trace_batch_nums:
            _say(text)
        else:
            frames.append(text)

    def _add_gradient(self, name: str, module_class: str, place: str, gradient: Tensor) -> None:
        """Gradients of one module that come one after another are one frame."""
        frame = self._open
        if frame is None or frame.name != name:
            self._close_backward()
            frame = self._open = _Frame(name, module_class, " (backward)")
        frame.add(gradient, f"gradient of {place}")
        if frame.bad:
            self._close_backward()
            self._judge(frame, self.batch_number - 1, "backward")

    def _close_backward(self) -> None:
        frame, self._open = self._open, None
        if frame is not None:
            self._keep(frame.lines, self._backward, self.batch_number - 1)

    # ---- the end ----

    def _judge(self, frame: _Frame, batch: int, phase: str) -> None:
        """End the run where the frame has something that is not finite."""
        if not frame.bad:
            return
        self.detected_overflow = True
        if batch in self.trace_batch_nums:
            return
        self._report(batch, phase)
        values = ", ".join(frame.bad)
        raise ValueError(
            f"DebugUnderflowOverflow: nan or inf in the {phase} pass of {frame.title}: {values} "
            f"(batch {batch}); the frames before it were printed above"
        )

    def _report(self, batch: int, phase: str) -> None:
        _say(f"\nDetected inf/nan during batch_number={batch}")
        self._list(self._forward, "forward")
        if phase == "backward":
            self._list(self._backward, "backward")
        _say("\n\n")

    def _list(self, frames: deque[str], phase: str) -> None:
        _say(f"Last {len(frames)} {phase} frames:\n{_HEADER}\n" + "\n".join(frames))
        frames.clear()


class _Frame:
    """What one module did, in lines; `bad` are the places of what is not finite."""

    def __init__(self, name: str, module_class: str, mark: str = "") -> None:
        self.name = name
        self.title = f"{name or 'the model itself'} ({module_class})"
        self.lines = [f"{_INDENT} {name} {module_class}{mark}"]
        self.bad: list[str] = []

    def add(self, value: Any, place: str) -> None:
        """A line about a value, which ends the run where it is not finite."""
        self.show(value, place)
        if isinstance(value, Tensor) and detect_overflow(value, place):
            self.bad.append(place)

    def show(self, value: Any, place: str) -> None:
        """A line about a value."""
        if isinstance(value, Tensor):
            self.lines.append(get_abs_min_max(value, place))
        else:
            self.lines.append(f"{'None' if value is None else 'not a tensor':>17} {place}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


@torch.no_grad()
def get_abs_min_max(var: Tensor, ctx: str) -> str:
    """A frame's line: the smallest and the largest magnitude of a tensor, and what it is.

    Args:
        var: The tensor.
        ctx: What it is called.
    """
    magnitudes = elements(var).abs()
    if not magnitudes.numel():
        return f"{'empty':>17} {ctx}"
    return f"{magnitudes.min().item():8.2e} {magnitudes.max().item():8.2e} {ctx}"


@torch.no_grad()
def detect_overflow(var: Tensor, ctx: str) -> bool:
    """Whether a tensor has NaN or infinite elements, which is also printed.

    Args:
        var: The tensor.
        ctx: What it is called in print.
    """
    plain = elements(var)
    has_nan, has_inf = bool(torch.isnan(plain).any()), bool(torch.isinf(plain).any())
    if has_nan:
        _say(f"{ctx} has nans")
    if has_inf:
        _say(f"{ctx} has infs")
    return has_nan or has_inf
