"""Updates that are not made because of their numbers: what becomes of them in a run. Only runs that ask for it come here.

Like the loop, it talks to the trainer; what is decided, copied and written is in `numerics`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mainspring import numerics
from mainspring.arguments.numerics import NumericsOptions, numerics_options
from mainspring.errors import NonFiniteError
from mainspring.state import export_states, load_state_dicts, restore_callbacks, state_dicts
from mainspring.utils.logging import get_logger

if TYPE_CHECKING:
    from torch import nn

    from mainspring.loop import Run
    from mainspring.trainer import Trainer

logger = get_logger(__name__)

_STATE = ("global_step", "best_metric", "best_global_step", "best_model_checkpoint")
"""What training that goes back takes back of the trainer's state. What was computed and logged until then stays so."""


@dataclass(frozen=True)
class Update:
    """An update whose gradients are there.

    Attributes:
        epoch: The epoch.
        first: Number of its first micro-batch in the epoch.
        size: How many it has.
        micro_batches: Those of them that this process learned from.
        num_items: The items in them, over all processes.
        norm: The gradient norm.
        rng: The random states before the first of them.
    """

    epoch: int
    first: int
    size: int
    micro_batches: Sequence[Any]
    num_items: Any
    norm: Any
    rng: Mapping[str, Any]


def check_options(trainer: Trainer, in_backward: bool) -> NumericsOptions:
    """What the options ask for, which this run is able to do.

    Raises:
        OptionError: It is not.
    """
    options, engine = numerics_options(trainer.args), trainer._engine
    numerics.refuse_run(
        options,
        in_backward=in_backward,
        why_no_snapshot=engine.why_no_snapshot(),
        remembers_gradients=engine.remembers_gradients,
    )
    return options


def no_numerics() -> numerics.Numerics:
    """Where nothing is trained, nothing is counted."""
    return numerics.Numerics(numerics.UpdateCounts(None, "cpu"), None, logs=False, clips=False, skips=False)


def numerics_of(trainer: Trainer) -> numerics.Numerics:
    """What goes along with a run that is about to begin."""
    engine, limit = trainer._engine, trainer.args.max_grad_norm
    options = check_options(trainer, engine.updates_in_backward)
    limit = limit if limit is not None and limit > 0 and not engine.updates_in_backward else None
    counts = numerics.UpdateCounts(limit, trainer._window.total.device)
    guard = None
    if options.decides:
        scaler = {} if engine.scaler is None else {"scaler": engine.scaler}
        others = {"optimizer": trainer.optimizer, "scheduler": trainer.lr_scheduler, **scaler}
        counters = numerics.Counters(partial(_read_counters, trainer), partial(_put_back_counters, trainer))
        subject = numerics.Subject(trainer.model, others)
        guard = numerics.Guard(options, engine, subject, trainer._window.total, counters)
    skips = "skip" in (options.on_nonfinite, options.on_spike) or options.on_spike == "rollback"
    return numerics.Numerics(
        counts,
        guard,
        logs=trainer._own.log_numerics,
        clips=limit is not None,
        skips=skips,
        tells=trainer.is_world_process_zero(),
    )


def was_left_out(trainer: Trainer, model: nn.Module, update: Update) -> bool:
    """Decide on an update. One that is not made leaves no trace but in the data and the random numbers.

    Raises:
        NonFiniteError: It ends the run.
    """
    watch = trainer._numerics
    assert watch.guard is not None
    update = replace(update, norm=trainer._engine.known(update.norm))
    step, losses = trainer.state.global_step, watch.counts.begun()
    decision = watch.guard.decide(losses, update.norm, step)
    if decision.action == "make":
        return False
    _take_back(trainer, model)
    event = _event(trainer, model, update, decision)
    if decision.action == "raise":
        _tell(trainer, event)
        raise NonFiniteError(numerics.describe(event), step=event.step)
    if decision.action == "rollback":
        back_to = _go_back(trainer, step)
        event = numerics.gone_back(event, back_to)
    else:
        watch.guard.decider.left_out()
    watch.counts.leave_out(decision.cause == "nonfinite")
    assert trainer._run is not None
    _shorten(trainer, trainer._run)
    _tell(trainer, event)
    if trainer.is_world_process_zero():
        logger.warning("%s", numerics.describe(event))
    return True


def _take_back(trainer: Trainer, model: nn.Module) -> None:
    """Forget the update's gradients, and what its forward passes have changed."""
    assert trainer._numerics.guard is not None
    trainer._numerics.guard.take_back()
    trainer._parts_of(model).forget_gradients()
    trainer._engine.abandon_update(model)
    trainer._recurrence.forget()


def _event(trainer: Trainer, model: nn.Module, update: Update, decision: numerics.Decision) -> numerics.Event:
    """What all processes together know of the update."""
    samples, order = None, trainer._epoch_order
    if order is not None:
        samples = order.samples_of(update.epoch, update.first, len(update.micro_batches))
    losses = [float(loss) for loss in trainer._numerics.counts.begun()]
    report, explains = _report(trainer, model, update, decision)
    own = numerics.Found(losses, samples, report, explains)
    return numerics.Event(
        step=trainer.state.global_step + 1,
        epoch=update.epoch,
        batches=range(update.first, update.first + update.size),
        decision=decision,
        grad_norm=None if update.norm is None else float(update.norm),
        found=numerics.explained(trainer._engine.every(own)),
    )


def _report(trainer: Trainer, model: nn.Module, update: Update, decision: numerics.Decision) -> tuple[str, bool]:
    """Where the first value that is not finite came from, on this process, and whether it was found here."""
    if decision.cause != "nonfinite" or not update.micro_batches:
        return "", False
    from mainspring.diagnostics.divergence import explain

    def run(part: nn.Module, batch: Any) -> Any:
        return trainer.training_step(part, batch, update.num_items)

    pieces, places = _as_learned(trainer, update.micro_batches)
    try:
        why_not = trainer._engine.why_not_again()
        report = explain(model, run, pieces, update.rng, distributed=trainer._is_distributed(), why_not=why_not)
    except Exception as error:  # noqa: BLE001 - a report is help: what it is about must be told all the same
        return f"where it came from could not be found: {type(error).__name__}: {error}", False
    if report.micro_batch is not None:
        report = report.within(*places[report.micro_batch])
    return str(report), report.found


def _as_learned(trainer: Trainer, micro_batches: Sequence[Any]) -> tuple[list[Any], list[tuple[int, int]]]:
    """The micro-batches in the pieces that memory holds; of each the number of its micro-batch, and its first row there."""
    pieces, places = [], []
    for number, batch in enumerate(micro_batches):
        row = 0
        for piece in trainer._fit.cutter.cut(batch, trainer._progress.pieces):
            if piece.share:  # a mean over none of its labels would be NaN by itself
                pieces.append(piece.inputs)
                places.append((number, row))
            row += piece.rows
    return pieces, places


def _go_back(trainer: Trainer, step: int) -> int:
    """Go back to a snapshot, and note that in the history; returns its update."""
    guard = trainer._numerics.guard
    assert guard is not None
    back_to = guard.go_back(step)
    note = {"rollback_from": step, "rollback_to": back_to, "epoch": trainer.state.epoch, "step": back_to}
    trainer.state.log_history.append(note)
    return back_to


def go_on(trainer: Trainer, run: Run, snapshots: list[dict[str, Any]] | None) -> None:
    """Go on with what the checkpoint says was decided, and with the places in it to go back to."""
    trainer._numerics.load_decisions(trainer._progress.numerics, snapshots)
    guard = trainer._numerics.guard
    if guard is not None and run.plan.schedule_steps is not None:  # it follows from the data left
        guard.decider.planned_anew()
    _shorten(trainer, run)


def _shorten(trainer: Trainer, run: Run) -> None:
    """Where epochs say how long the run is, updates that are not made make it shorter."""
    if trainer._numerics.guard is not None and trainer.args.max_steps <= 0:
        trainer.state.max_steps = run.plan.max_steps - trainer._numerics.lost


def _tell(trainer: Trainer, event: numerics.Event) -> None:
    """Write the event down, by the main process. That it cannot be written must not hide it."""
    if not trainer.args.should_save:
        return
    try:
        numerics.write_event(trainer._get_output_dir(trainer._trial), event)
    except OSError as error:
        logger.error("%s could not be written: %s", numerics.EVENTS_NAME, error)


def _read_counters(trainer: Trainer) -> dict[str, Any]:
    """What a run counts, as plain values. All processes read together."""
    guard, callbacks = trainer._numerics.guard, trainer.callback_handler.callbacks
    assert guard is not None
    exported = [thing for thing in trainer._exportable() if thing is not trainer.control]
    return {
        "running": guard.decider.running.state(),
        "window_losses": trainer._window_losses(),
        "total_loss": trainer._total_loss_scalar,
        "logged_at": trainer._globalstep_last_logged,
        "counts": list(trainer._numerics.counts.read(trainer._engine.sum)),
        "state": {name: getattr(trainer.state, name) for name in _STATE},
        "callbacks": copy.deepcopy(export_states(exported)),
        "callback_tensors": copy.deepcopy(state_dicts(callbacks)),
        "averages": trainer._averages.copied(),
    }


def _put_back_counters(trainer: Trainer, read: Mapping[str, Any]) -> None:
    """Count on from what `_read_counters` gave."""
    handler = trainer.callback_handler
    trainer._window.total.fill_(read["window_losses"][trainer._engine.data_rank])
    trainer._total_loss_scalar, trainer._globalstep_last_logged = read["total_loss"], read["logged_at"]
    trainer._numerics.counts.restart(numerics.Counted(*read["counts"]))
    for name, value in read["state"].items():
        setattr(trainer.state, name, value)
    trainer._saved_step, trainer._evaluated_at = None, (-1, {})  # those updates are yet to come
    restore_callbacks(handler.callbacks, trainer.control, copy.deepcopy(read["callbacks"]))
    load_state_dicts(handler.callbacks, copy.deepcopy(read["callback_tensors"]))
    trainer._averages.put_back(read["averages"])
