"""Updates that are tried and taken back: the training loop's own, of which nothing stays."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from mainspring import loop
from mainspring.data.epoch_order import EpochOrder
from mainspring.data.position import batches_from
from mainspring.metrics import LossWindow
from mainspring.rehearsal import kept
from mainspring.state import Progress

if TYPE_CHECKING:
    from mainspring.state import TrainPlan
    from mainspring.trainer import Trainer

_Around = Callable[[list[Any]], contextlib.AbstractContextManager[Any]]
_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Rehearsal:
    """What `train` would do, an update at a time; afterwards everything is as it was, so that `train` does the same.

    The batches are those that training begins with. Taken back are weights, buffers and gradients, what modules keep in
    numbers, the optimizer, random states, loaders, and all that the trainer and its engine note. The schedule does not
    move, and no callback hears of it.

    Args:
        trainer: Its overridable methods are what is called.
        name: What this is for, in messages: "lr_find()".
        accumulation: Micro-batches of an update at most; None: as many as in training.
        listeners: Callbacks that hear the events meanwhile.

    Raises:
        RuntimeError: The trainer is training.
        ValueError: The data can be gone through only once, or the engine cannot take updates back.
    """

    def __init__(
        self, trainer: Trainer, name: str, accumulation: int | None = None, listeners: Iterable[Any] = ()
    ) -> None:
        if trainer.is_in_train:
            raise RuntimeError(f"{name}: the trainer is training; ask before or after")
        why_not = trainer._engine.why_not_rehearsed()
        if why_not is not None:
            raise ValueError(f"{name} cannot be: {why_not}")
        if isinstance(trainer.train_dataset, Iterator):
            raise ValueError(
                f"{name} reads training data, and train_dataset={type(trainer.train_dataset).__name__} can be read only "
                "once: nothing would be left to train on. Give a data set that can be iterated again"
            )
        self._trainer = trainer
        self._name = name
        self._limit = accumulation
        self._listeners = list(listeners)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Rehearsal:
        with self._stack:
            self._stack.callback(gc.collect)  # the optimizer and the wrapped model hold on to themselves
            self._stack.enter_context(self._trainer._engine.session(self._name))
            for as_it_was in self._everything():
                self._stack.enter_context(as_it_was)
            self._prepare()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _everything(self) -> Iterator[contextlib.AbstractContextManager[None]]:
        """What is put back in the end, the first of it last."""
        trainer = self._trainer
        yield kept.random_numbers(trainer)
        yield kept.attributes(trainer.callback_handler)
        yield kept.engine_state(trainer._engine)
        yield kept.attributes(trainer)
        yield trainer._recurrence.apart()
        yield kept.optimizer_state(trainer.optimizer)
        yield kept.tensors(trainer.model)
        yield kept.hooks(trainer.model)
        yield kept.module_values(trainer.model)

    def _prepare(self) -> None:
        """As the trainer does for a run, with a schedule that stands still."""
        trainer = self._trainer
        trainer.is_in_train = True
        trainer.callback_handler.callbacks = self._listeners
        self._stack.callback(trainer._features.close)
        trainer._prepare_model_features()
        loader = self._loader = trainer.get_train_dataloader()
        self._stack.callback(self._let_go)
        self._stack.enter_context(kept.place_of_loader(loader))
        trainer._epoch_order = EpochOrder.of(loader)
        plan = self._plan = self._shortened(trainer._plan(trainer.args, loader))
        self._forget_progress(plan.max_steps)
        trainer._run = loop.Run(plan=plan, model=self._wrap(plan.max_steps), loader=loader)
        trainer._begin_counting(None)
        trainer._numerics.guard = None  # no update is left out, and none ends the rehearsal
        trainer._window = LossWindow(trainer.args.device, keep_finite=False)
        self._updates = loop.UpdateRunner(trainer, trainer._run, epoch=0, done=0)
        self._batches = self._all_batches()

    def _shortened(self, plan: TrainPlan) -> TrainPlan:
        size = plan.gradient_accumulation_steps
        return replace(plan, gradient_accumulation_steps=min(size, self._limit or size), short_updates="step")

    def _forget_progress(self, max_steps: int) -> None:
        trainer = self._trainer
        trainer.control, trainer.state = copy.copy(trainer.control), copy.copy(trainer.state)
        trainer.state.global_step, trainer.state.max_steps, trainer.state.log_history = 0, max_steps, []
        trainer._progress = Progress(world_size=trainer._engine.data_world_size)

    def _wrap(self, max_steps: int) -> nn.Module:
        trainer = self._trainer
        trainer.lr_scheduler, trainer._created_lr_scheduler = None, False
        model = trainer.model_wrapped = trainer._wrap_and_optimize(max_steps, None)
        trainer.optimizer = trainer._engine.prepare_optimizer(trainer.optimizer)
        trainer.lr_scheduler = _StandingSchedule(trainer.optimizer)
        return model

    def _let_go(self) -> None:
        """Of workers, and of what holds the optimizer and the wrapped model."""
        for name in ("_batches", "_loader", "_updates"):
            vars(self).pop(name, None)

    def _all_batches(self) -> Iterator[tuple[list[Any], Any, list[Any]]]:
        """The micro-batches of each update, epoch after epoch."""
        trainer = self._trainer
        for epoch in itertools.count():
            read = 0
            trainer._progress.epoch, trainer._progress.batches = epoch, 0
            batches = trainer._read_together(batches_from(self._loader, epoch), self._loader)
            while True:
                micro_batches, items = trainer.get_batch_samples(
                    batches, self._plan.gradient_accumulation_steps, trainer._engine.device
                )
                idle = trainer._idle_batches(batches, micro_batches)
                if not micro_batches and not idle:
                    break
                read += 1
                yield micro_batches, items, idle
            if not read:
                raise ValueError(f"{self._name}: the training data gave no batch in epoch {epoch}")

    # ---- one update ----

    @property
    def optimizer(self) -> Any:
        """The run's optimizer."""
        return self._trainer.optimizer

    def update(self, around: _Around = lambda micro_batches: _NOTHING) -> float:
        """Make one update; returns its loss, the mean over all processes.

        Args:
            around: Makes, of the micro-batches, a context in which they are learned from.
        """
        trainer = self._trainer
        micro_batches, items, idle = next(self._batches)
        with around(micro_batches):
            self._updates(micro_batches, items, idle)
        loss = trainer._engine.mean(trainer._window.total)
        trainer._window.total.zero_()
        return loss


class _StandingSchedule:
    """A schedule that leaves the rates as they are."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.last_epoch = 0

    def get_last_lr(self) -> list[float]:
        return [float(group["lr"] or 0.0) for group in self._optimizer.param_groups]

    def step(self) -> None:
        """Nothing moves."""
