"""The first module and sample that made an update non-finite, found by running its micro-batches again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mainspring.diagnostics.alone import Alone
from mainspring.diagnostics.kept import as_before
from mainspring.diagnostics.report import Divergence, Phase
from mainspring.diagnostics.rows import part_of, rows_of
from mainspring.diagnostics.taps import Taps
from mainspring.diagnostics.values import first_bad, is_bad, row_of, tensors
from mainspring.diagnostics.witness import Witness
from mainspring.model import unwrap
from mainspring.seeding import restore_rng

__all__ = ["Divergence", "Phase", "explain"]

Runner = Callable[[nn.Module, Any], Any]


def explain(
    model: nn.Module,
    run: Runner,
    micro_batches: Sequence[Any],
    rng: Mapping[str, Any] | None = None,
    *,
    distributed: bool = False,
    why_not: str | None = None,
) -> Divergence:
    """Run the micro-batches of an update again, and say where its first value that is not finite came from.

    Nothing is left changed: weights, gradients, buffers, training modes and random states are afterwards what they were.
    Nothing is agreed with other processes: what runs is the module inside the wrappers, uncompiled, and where that talks
    to them by itself, it is not run to the end.

    Args:
        model: The model, wrapped or not.
        run: `(model, micro_batch) -> loss`: forward and backward of one micro-batch, through the module that it is
            given, without an optimizer step.
        micro_batches: Those of the update, in order.
        rng: The random states before the first of them, from `mainspring.seeding.capture_rng`; None: the present ones.
        distributed: Whether this process is one of several, as `capture_rng` was told.
        why_not: Why they cannot be run again by this process, where that is known; what was handed in is looked at.

    Returns:
        The report; `str()` of it is a few lines for people.
    """
    inner = unwrap(model)
    reason = why_not or _why_not(model)
    if reason is not None:
        return _handed_in(micro_batches) or Divergence.not_found(reason)
    found = _in_parameters(inner)
    if found is not None:
        return found
    alone: contextlib.AbstractContextManager[Any] = Alone() if distributed else contextlib.nullcontext()
    with as_before(inner, distributed), torch.enable_grad(), _uncompiled(), alone:
        if rng is not None:
            restore_rng(rng, distributed)
        try:
            return _Replay(inner, run, distributed).search(micro_batches)
        except Exception as error:  # noqa: BLE001 (the event that is being explained must not be hidden by another)
            why = f"running the update again ended with {type(error).__name__}: {error}"
            return _handed_in(micro_batches) or Divergence.not_found(why)


def _why_not(model: nn.Module) -> str | None:
    """Why the model cannot be run again by one process alone."""
    tensor_in_pieces = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    shards = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", ())
    if any(isinstance(module, shards) for module in model.modules()) or any(
        isinstance(parameter, tensor_in_pieces) for parameter in model.parameters()
    ):
        return "the model lies in pieces on several processes, and none of them can run it alone"
    if any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in model.parameters()):
        return "the optimizer acts inside the backward pass: running it again would change the weights"
    return None


def _in_parameters(model: nn.Module) -> Divergence | None:
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if is_bad(parameter):
                value, _ = first_bad(parameter)
                return Divergence(Phase.PARAMETERS, module_name, type(module).__name__, name, value)
    return None


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Modules that were compiled in place run as they were written, so that the hooks inside are called."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    eager: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


@dataclass
class _Pass:
    """One micro-batch that has run again."""

    witness: Witness
    loss: Tensor | None

    @property
    def loss_is_bad(self) -> bool:
        return self.loss is not None and is_bad(self.loss)


class _Replay:
    """Runs micro-batches one after another, and looks at each."""

    def __init__(self, model: nn.Module, run: Runner, distributed: bool) -> None:
        self.model = model
        self.run = run
        self.distributed = distributed

    def search(self, micro_batches: Sequence[Any]) -> Divergence:
        """The report of the first micro-batch in which something is wrong."""
        for number, batch in enumerate(micro_batches):
            found = self._judged(batch)
            if found is not None:
                if found.row is None and found.phase is not Phase.PARAMETERS:
                    found = replace(found, row=self._row_alone(batch, found))
                return replace(found, micro_batch=number)
        return Divergence.not_found()

    def _judged(self, batch: Any) -> Divergence | None:
        """What is wrong with this micro-batch, from the most certain to the least."""
        with self._ran(batch) as done:
            witness = done.witness
            if done.loss_is_bad:
                suspects = [*witness.forward, *_in_batch(batch, witness.rows)]
                return _hardest(suspects, witness.absorbed) or _in_loss(done)
            found = witness.backward or _in_gradients(self.model)
            if found is not None and found.module in witness.fed:  # what went in has turned a gradient of 0 into NaN
                return _hardest(_in_batch(batch, witness.rows), witness.absorbed) or found
            return found

    @contextlib.contextmanager
    def _ran(self, batch: Any) -> Iterator[_Pass]:
        witness = Witness(rows_of(batch))
        taps = Taps(self.model, witness)
        try:
            loss = self.run(self.model, batch)
            yield _Pass(witness, loss.detach() if isinstance(loss, Tensor) else None)
        finally:
            taps.remove()
            witness.forget()

    def _row_alone(self, batch: Any, found: Divergence) -> int | None:
        """The first sample that shows the same when it is run alone; None where none does.

        Only where the place in a tensor did not tell, as in a sum over all samples.
        """
        rows = rows_of(batch)
        if not rows:
            return None
        if rows == 1:
            return 0
        for row in range(rows):
            with as_before(self.model, self.distributed):
                try:
                    alone = self._judged(part_of(batch, rows, row, row + 1))
                except (RuntimeError, ValueError):  # a module that needs several samples, such as batch normalisation
                    return None
            if alone is not None and (alone.phase, alone.module) == (found.phase, found.module):
                return row
        return None


def _hardest(suspects: Sequence[Divergence], absorbed: bool) -> Divergence | None:
    """The first that is more than -inf, of which masks are made; else the first, unless a module knew what to do with it."""
    hard = [suspect for suspect in suspects if suspect.value != "-inf"]
    return next(iter(hard or ([] if absorbed else suspects)), None)


def _in_batch(batch: Any, rows: int | None) -> list[Divergence]:
    found = []
    for place, tensor in tensors(batch, ""):
        if is_bad(tensor):
            value, index = first_bad(tensor)
            column = place.removeprefix("[").replace("]", "", 1)
            found.append(Divergence(Phase.INPUTS, tensor=column, value=value, row=row_of(tensor, index, rows)))
    return found


def _handed_in(micro_batches: Sequence[Any]) -> Divergence | None:
    """What can be seen of the update without running it."""
    for number, batch in enumerate(micro_batches):
        found = _hardest(_in_batch(batch, rows_of(batch)), absorbed=True)
        if found is not None:
            return replace(found, micro_batch=number)
    return None


def _in_loss(done: _Pass) -> Divergence:
    assert done.loss is not None
    value, _ = first_bad(done.loss)
    return Divergence(Phase.LOSS, tensor="the loss", value=value)


def _in_gradients(model: nn.Module) -> Divergence | None:
    """What no gradient on its way has shown: their sum over the micro-batches so far."""
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.grad is not None and is_bad(parameter.grad):
                value, _ = first_bad(parameter.grad)
                what = f"sum of the gradients of {name} over the micro-batches"
                return Divergence(Phase.BACKWARD, module_name, type(module).__name__, what, value)
    return None
