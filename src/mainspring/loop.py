"""THE training loop: `fit` > `run_epoch` > `run_update`. Each level does one thing and fits on a screen.

It talks to the trainer's overridable methods and to its engine, and imports no module behind them: it cannot go
round what a user overrides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from mainspring.callbacks.preemption import StopInsideEvaluation, StopRequests
from mainspring.guarding import Update, was_left_out
from mainspring.seams import adapt
from mainspring.utils.logging import get_logger

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mainspring.metrics import TrainOutput
    from mainspring.state import TrainerControl, TrainerState, TrainPlan
    from mainspring.trainer import Trainer

logger = get_logger(__name__)


EVENTS = ("should_log", "should_evaluate", "should_save")
"""What may be due at the end of an update: control flags, in the order in which they are served."""


def events_due(control: TrainerControl) -> tuple[str, ...]:
    """What the control asks for."""
    return tuple(flag for flag in EVENTS if getattr(control, flag))


@dataclass(frozen=True)
class Boundary:
    """Where a run can go back to, the weights being what they are: all else that it changes from here on.

    Attributes:
        due: What is to be done here still: those of `EVENTS`.
        rng: The random states.
        window: Sum of the losses since the last log, 0-d.
        total_loss: Sum of the losses until then.
        logged_at: Update of the last log.
        counted: Operations, input tokens, padding and updates that went wrong, counted since then.
        state: A shallow copy of the trainer's state.
        logs: Length of its history.
        callbacks: States of callbacks and control, by class.
    """

    due: tuple[str, ...]
    rng: dict[str, Any]
    window: Tensor
    total_loss: float
    logged_at: int
    counted: tuple[float, Any, Any, Any]
    state: TrainerState
    logs: int
    callbacks: dict[str, Any]


@dataclass
class Run:
    """One call of `train`: the frozen plan, what was prepared for it, and where it starts.

    Attributes:
        plan: Every number that was worked out before the first update.
        model: The wrapped model that the forward passes go through.
        loader: The training batches of this process.
        first_epoch: The epoch in which training begins, above 0 when resumed.
        skip: Micro-batches of that epoch that were already trained on.
        start_time: When the run began, in seconds since the epoch.
        checkpoint: The folder that is resumed from, or None.
        trial: The hyper-parameter search's trial, or None.
        ignore_keys: Output keys that evaluations leave out.
        carried: Micro-batches whose update the next epoch completes, their gradients being kept.
        stops: What may ask the run to stop.
        position: What the checkpoint says of the place in a stream, until the first batch after it is asked for.
        before_evaluation: Where a resumed run makes the evaluation under way again; None: it is not one to be left.
        rng: The random states to begin with, where they are not the checkpoint's.
        saves_on_exception: Whether an exception first saves the run as it was at `boundary`.
        boundary: The last place that an exception would go back to; None while the weights are being changed.
        stopped: Whether a callback had ended the epoch to begin with, or all training, before the checkpoint was written.
        grad_norm: Gradient norm of the last update.
        learning_rate: Learning rate that it used.
    """

    plan: TrainPlan
    model: nn.Module
    loader: Any
    first_epoch: int = 0
    skip: int = 0
    start_time: float = 0.0
    checkpoint: str | None = None
    trial: Any = None
    ignore_keys: list[str] | None = None
    carried: int = 0
    stops: StopRequests = field(default_factory=StopRequests)
    position: Any = None
    before_evaluation: Boundary | None = None
    rng: dict[str, Any] | None = None
    saves_on_exception: bool = False
    boundary: Boundary | None = None
    stopped: bool = False
    grad_norm: Tensor | float | None = None
    learning_rate: float | None = None


def fit(trainer: Trainer, run: Run) -> TrainOutput:
    """Train from where the run starts to the end of its plan."""
    engine = trainer._engine
    engine.forget_wishes()
    with run.stops.listen(), engine.during(lambda: f"training, update {trainer.state.global_step + 1}"):
        with trainer._saving_on_exception(run):
            trainer._fire("on_train_begin")
            _begin(trainer, run)
            for epoch in _epochs(trainer, run):
                trainer._fire("on_epoch_begin")
                trainer._run_epoch(**_epoch_arguments(run, epoch))
                _heed_stop(trainer, run)
                if trainer.control.should_training_stop:
                    break
            _heed_stop(trainer, run)  # between processes an answer comes with the question after it
        with engine.during("the end of training"):
            output = trainer._finalize_training(run.trial, run.plan.num_train_samples, run.start_time)
        _heed_late_stop(trainer, run)
    return output


def _begin(trainer: Trainer, run: Run) -> None:
    """What comes before the first epoch: the first evaluation, or what a stopped run had left to be done."""
    if trainer.args.eval_on_start and not (run.checkpoint is not None and trainer._own.exact_position):
        with _leaving_evaluation(trainer, run):
            trainer._evaluate(run.trial, run.ignore_keys, skip_scheduler=True)
        _heed_stop(trainer, run)
    if trainer._restore_pending_events(run):
        trainer._updates(trainer, run, run.first_epoch, run.skip).log_save_evaluate()
        run.rng = trainer._random_states()


def _epochs(trainer: Trainer, run: Run) -> Iterator[int]:
    """The epochs left; none where the training had been stopped between two of them.

    Where the number of updates is given, further ones make up for updates that were not made.
    """
    epoch = run.first_epoch
    while not (run.stopped and run.skip == 0):
        if epoch >= run.plan.num_train_epochs and not trainer._has_updates_to_make_up(epoch):
            return
        yield epoch
        epoch += 1


def _epoch_arguments(run: Run, epoch: int) -> dict[str, Any]:
    """What the overridable `_run_epoch` is given."""
    return {
        "model": run.model,
        "epoch": epoch,
        "train_dataloader": run.loader,
        "steps_in_epoch": run.plan.steps_in_epoch,
        "num_update_steps_per_epoch": run.plan.num_update_steps_per_epoch,
        "trial": run.trial,
        "ignore_keys_for_eval": run.ignore_keys,
        "start_time": run.start_time,
        "resume_from_checkpoint": run.checkpoint,
        "epochs_trained": run.first_epoch,
        "steps_trained_in_current_epoch": run.skip,
    }


def run_epoch(trainer: Trainer, run: Run, epoch: int, skip: int) -> None:
    """One pass over the data, from micro-batch `skip` on."""
    control = trainer.control
    batches = trainer._batches_of(run, epoch, skip)
    plan = run.plan.of_epoch(trainer._steps_in_epoch(run, epoch))
    update = trainer._updates(trainer, run, epoch, skip, plan.steps_in_epoch)
    read_anything = run.checkpoint is not None and epoch == run.first_epoch  # by the run that is gone on with
    for size in () if _was_stopped(trainer, run) else plan.sizes_of_updates(skip, run.carried):
        if trainer.state.global_step >= plan.max_steps - trainer._updates_lost():
            control.should_training_stop = True
            break
        micro_batches, num_items = trainer.get_batch_samples(batches, size, trainer._engine.device)
        idle = trainer._idle_batches(batches, micro_batches)
        if not micro_batches and not idle:
            break
        read_anything = True
        update(micro_batches, num_items, idle)
        control = trainer.control
        if control.should_epoch_stop or control.should_training_stop:
            break
    if not read_anything:
        _stop_without_data(trainer)
    trainer._fire("on_epoch_end")
    trainer._close_epoch(epoch)
    update.log_save_evaluate()


def _was_stopped(trainer: Trainer, run: Run) -> bool:
    """Whether the checkpoint says that this epoch has no update left; its events and what follows them are still due."""
    stopped, run.stopped = run.stopped, False
    if stopped:
        trainer._restore_stops()  # the epoch's beginning took one back
    return stopped


def _stop_without_data(trainer: Trainer) -> None:
    logger.warning(
        "the training data gave no batch in this epoch: training stops at step %d of %d",
        trainer.state.global_step,
        trainer.state.max_steps,
    )
    trainer.control.should_training_stop = True


def _heed_stop(trainer: Trainer, run: Run) -> None:
    """End the run with a checkpoint of this very update, where all processes agree that one of them was asked to."""
    if run.stops.active and trainer._engine.agree(run.stops.wanted()):
        _stop(trainer, run)


def _heed_late_stop(trainer: Trainer, run: Run) -> None:
    """A request that came when all was trained was not for nothing: the program ends, and has nothing left to train."""
    if run.stops.active and trainer._engine.agree(run.stops.wanted()):
        step = trainer.state.global_step
        raise run.stops.ending(
            f"{run.stops.reason or 'another process was asked'}: training is complete at step {step}"
        )


def _stop(trainer: Trainer, run: Run) -> NoReturn:
    """Save, and say what continues the run."""
    place = f"{run.stops.reason or 'another process was asked'}: stopped at step {trainer.state.global_step}"
    message = f"{place} of {run.plan.max_steps}"
    if trainer.state.global_step > 0:
        folder = trainer._save_now(run.model, run.trial)
        place = f"{folder} continues it" if folder else "it could not be saved there, an older checkpoint continues it"
        message = f"{message}; {place}: train(resume_from_checkpoint=True)"
    logger.warning("%s", message)
    raise run.stops.ending(message)


@contextlib.contextmanager
def _leaving_evaluation(trainer: Trainer, run: Run) -> Iterator[None]:
    """Let a request to stop end an evaluation between two batches: a resumed run makes it again."""
    try:
        yield
    except StopInsideEvaluation:
        assert run.before_evaluation is not None
        trainer._return_to(run.before_evaluation)
        _stop(trainer, run)


class UpdateRunner:
    """`run_update` of one epoch, with what does not change between updates looked up once."""

    def __init__(self, trainer: Trainer, run: Run, epoch: int, done: int, steps_in_epoch: int | None = None) -> None:
        self.trainer = trainer
        self.run = run
        self.epoch = epoch
        self.done = done
        self.steps_in_epoch = run.plan.steps_in_epoch if steps_in_epoch is None else steps_in_epoch
        self._whole = run.plan.gradient_accumulation_steps
        self._steps_when_short = run.plan.steps_when_short
        self._averages = trainer._averages
        self._training_step = adapt(trainer.training_step, ("model", "inputs", "num_items_in_batch"))
        self._maybe_log_save_evaluate = adapt(trainer._maybe_log_save_evaluate, _LOG_SAVE_EVALUATE)
        self._rng_before: dict[str, Any] = {}  # at the beginning of the update, where somebody needs it

    def __call__(self, micro_batches: list[Any], num_items: Tensor | int | None, idle: list[Any]) -> None:
        """One optimizer update: see `mainspring.callbacks.base` for the order of events.

        Args:
            micro_batches: What is learned from.
            num_items: The items in them, over all processes.
            idle: Batches of which nothing counts, where other processes have more micro-batches than this one.
        """
        trainer, run = self.trainer, self.run
        count = len(micro_batches) + len(idle)
        trainer.current_gradient_accumulation_steps = self._backward_passes(micro_batches, count)
        trainer._weigh(micro_batches)
        trainer._fire("on_step_begin")
        self._begin(trainer)
        whole = run.carried + count == self._whole or self._steps_when_short
        if not self._accumulate(micro_batches, idle, num_items, count - 1 if whole else None):
            return
        if self._step(trainer, micro_batches, num_items, count):
            self._advance(trainer)
            trainer._fire("on_step_end")
            self.log_save_evaluate()
        else:
            self._pass_over(trainer)
        if run.saves_on_exception:
            run.boundary = trainer._boundary()
        _heed_stop(trainer, run)

    def _backward_passes(self, micro_batches: list[Any], count: int) -> int:
        """What a loss that is a mean over what one backward pass is given is divided by, where all are of one size."""
        return self.run.plan.parts_of_loss(len(micro_batches) or count)

    def _accumulate(
        self, micro_batches: list[Any], idle: list[Any], num_items: Tensor | int | None, last: int | None
    ) -> bool:
        """Forward and backward of every micro-batch; False where no step follows.

        That is where a callback stopped the epoch in between, or where `last`, the one that completes the update, is
        None because the data ended too early.
        """
        trainer, model = self.trainer, self.run.model
        learned, all_of_it = len(micro_batches), [*micro_batches, *idle]
        for position, batch in enumerate(all_of_it):
            one = self._learn if position < learned else self._idle
            one(model, batch, num_items, position == last)
            self.done += 1
            if position != last:
                self._end_substep(position)
                if trainer.control.should_epoch_stop or trainer.control.should_training_stop:
                    trainer._parts_of(model).forget_gradients()  # half an update must not leak into the next one
                    trainer._engine.forget_gradients(model)
                    self.run.carried = 0
                    return False
        self.run.carried = self.run.plan.carried(self.run.carried + len(all_of_it))
        return last is not None

    def _end_substep(self, position: int) -> None:
        self.trainer._fire("on_substep_end")

    def _learn(self, model: nn.Module, batch: Any, num_items: Tensor | int | None, closes: bool) -> None:
        with self.trainer._engine.accumulate(model, closes):
            loss = self._training_step(model, batch, num_items)
        self._count(loss, batch)

    def _count(self, loss: Tensor, batch: Any) -> None:
        """Note what a micro-batch has given, and cost."""
        trainer = self.trainer
        trainer._window.add(loss, trainer.state.global_step - trainer._globalstep_last_logged)
        trainer._numerics.add(loss)
        trainer._account(batch)

    def _idle(self, model: nn.Module, batch: Any, num_items: Tensor | int | None, closes: bool) -> None:
        """Take part in what the others compute together, with nothing of one's own."""
        with self.trainer._engine.accumulate(model, closes), self.trainer._resting():
            self._training_step(model, batch, num_items)

    def _begin(self, trainer: Trainer) -> None:
        """An update begins, unless it goes on with gradients of the epoch before."""
        if not self.run.carried:
            trainer._numerics.begin(trainer.state.global_step)
        if trainer._numerics.guard is not None:
            self._rng_before = trainer._random_states()

    def _step(self, trainer: Trainer, micro_batches: list[Any], num_items: Tensor | int | None, count: int) -> bool:
        """Clip, step, move the schedule, forget the gradients; False where the update is not made, for its numbers."""
        run, model = self.run, self.run.model
        limit = trainer.args.max_grad_norm
        clipped = trainer._clip_grad_norm(model) if limit is not None and limit > 0 else None
        norm = trainer._get_grad_norm(model, grad_norm=clipped)
        if trainer._numerics.guard is not None:
            first = self.done - count
            update = Update(self.epoch, first, count, micro_batches, num_items, norm, self._rng_before)
            if was_left_out(trainer, model, update):
                return False
        run.boundary, run.grad_norm = None, norm
        trainer._fire("on_pre_optimizer_step")
        trainer._engine.step(trainer.optimizer)
        trainer._fire("on_optimizer_step")
        self._averages.update(trainer.state.global_step + 1, trainer._engine.step_was_skipped)
        run.learning_rate = trainer._get_learning_rate()  # the rate that this update used
        trainer._step_scheduler()
        trainer._parts_of(model).forget_gradients()
        overflowed = trainer._engine.step_was_skipped and trainer._engine.scales_loss
        trainer._numerics.end(norm, overflowed)
        return True

    def _advance(self, trainer: Trainer) -> None:
        trainer.state.global_step += 1
        self._move_on(trainer)

    def _move_on(self, trainer: Trainer) -> None:
        """The data of this update lies behind us."""
        trainer.state.epoch = self.epoch + self.done / self.steps_in_epoch
        trainer._progress.batches = self.done

    def _pass_over(self, trainer: Trainer) -> None:
        """The update was not made. Where it would have been the last one, the one before turns out to be that."""
        self._move_on(trainer)
        if 0 < trainer.state.max_steps <= trainer.state.global_step:
            trainer._fire("on_step_end")
            trainer._leave_what_is_done()
            self.log_save_evaluate()

    def log_save_evaluate(self) -> None:
        """Log, evaluate and save where the control asks for it, through the overridable seam."""
        trainer, run = self.trainer, self.run
        trainer._engine.settle(trainer.control)
        if run.saves_on_exception:
            run.boundary = trainer._boundary(events_due(trainer.control))
        with _leaving_evaluation(trainer, run):
            self._maybe_log_save_evaluate(
                trainer._window.total,
                run.grad_norm,
                run.model,
                run.trial,
                self.epoch,
                run.ignore_keys,
                run.start_time,
                run.learning_rate,
            )
        trainer._tell_of_finished_saves()


_LOG_SAVE_EVALUATE = (
    "tr_loss",
    "grad_norm",
    "model",
    "trial",
    "epoch",
    "ignore_keys_for_eval",
    "start_time",
    "learning_rate",
)
