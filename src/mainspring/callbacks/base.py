"""Events, the base class of callbacks, and the handler that calls them.

The training loop as pseudo-code, with every event where it happens. `fire` calls the callbacks in the order in which
they were added; the `should_...` flags are those of the control.

    Trainer(...):
        fire on_init_end

    trainer.train():
        fire on_train_begin                       # should_training_stop is taken back
        if eval_on_start:
            evaluate()
        for epoch in epochs:
            fire on_epoch_begin                   # should_epoch_stop is taken back
            for micro_batches in updates:
                fire on_step_begin                # should_log, should_evaluate, should_save are taken back
                for batch in micro_batches:
                    forward, backward
                    if batch is not the last:
                        fire on_substep_end
                clip the gradients
                if on_nonfinite or on_loss_spike leaves the update out:
                    go on with the next one           # without another event; but where it would have been the
                                                      # last one, on_step_end and what follows it come once more
                fire on_pre_optimizer_step
                optimizer.step()
                fire on_optimizer_step
                lr_scheduler.step(), zero_grad(), state.global_step += 1
                fire on_step_end
                log_evaluate_save()
                if should_epoch_stop or should_training_stop: break
            fire on_epoch_end
            log_evaluate_save()
            if should_training_stop: break
        load the best model, if asked to
        log(speed, train_loss)                    # fire on_log
        fire on_train_end

    log_evaluate_save():
        if should_log:      log(loss, ...)        # fire on_log; takes should_log back
        if should_evaluate: evaluate()            # takes should_evaluate back
        note a new best metric                    # sets should_save with save_strategy="best"
        if should_save:
            write the checkpoint                  # fire on_push_begin, when it is pushed to the hub
            fire on_save                          # takes should_save back

    evaluate():                                   # one round per dataset when there are several
        for batch in eval_dataloader:
            fire on_prediction_step
        log(metrics)                              # fire on_log
        fire on_evaluate

    trainer.predict():
        for batch in test_dataloader:
            fire on_prediction_step
        fire on_predict
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mainspring.state import CONTROL_FLAGS, TrainerControl, TrainerState

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments

logger = logging.getLogger(__name__)

EVENTS: tuple[str, ...] = (
    "on_init_end",
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_prediction_step",
    "on_log",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_push_begin",
)
"""Names of all events."""

Answer = TrainerControl | Mapping[str, bool] | None
"""What a handler may return: nothing, a control, or flags to set such as `{"should_save": True}`."""

Handler = Callable[..., Any]


class TrainerCallback:
    """Base of callbacks: override the events you need; those left alone cost nothing.

    Each event gets `args`, `state` and `control`, and as keywords `model`, `processing_class`, `tokenizer` (the same
    object under its older name), `optimizer`, `lr_scheduler`, `train_dataloader`, `eval_dataloader`. Only `control` is
    meant to be changed: in place, by returning a control, or by returning the flags to set as a mapping. Returning
    None or an empty mapping changes nothing.

    >>> class StopAt(TrainerCallback):
    ...     def __init__(self, step: int):
    ...         self.step = step
    ...     def on_step_end(self, args, state, control, **kwargs):
    ...         return {"should_training_stop": True} if state.global_step >= self.step else {}
    """

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """The Trainer has been built."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """Training begins: everything is prepared, and a resumed state is in place."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """Training has ended; the best model is loaded if that was asked for."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """An epoch begins."""

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """An epoch has ended; logging, evaluation and saving come next."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """An update begins, before its first micro-batch."""

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """A micro-batch that is not the last of its update is done."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """The gradients are complete and clipped; the optimizer steps next."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """The optimizer has stepped; the gradients are still there, the learning rate is the one just used."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """An update is done and counted; logging, evaluation and saving come next."""

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """A batch of an evaluation or a prediction is done."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Answer:
        """Something is logged: keyword `logs`, a dict that is also the last entry of `state.log_history`, less its step."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """An evaluation is done: keyword `metrics`. The best metric does not yet take it into account."""

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any],
        **kwargs: Any,
    ) -> Answer:
        """A prediction is done, with its `metrics`."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Answer:
        """A checkpoint has been written."""

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> Answer:
        """An upload to the hub begins."""

    def _abandon(self) -> None:
        """The run has ended by an exception: let go of what would stay on the screen."""


class CallbackList(list[Any]):
    """The callbacks in call order. Each change of the list empties `resolved`, which was derived from it."""

    resolved: dict[str, Any] = {}  # noqa: RUF012  # stands in while copying and unpickling, before the own one is set

    def __init__(self, callbacks: Iterable[Any] = (), resolved: dict[str, Any] | None = None) -> None:
        super().__init__(callbacks)
        self.resolved = {} if resolved is None else resolved


def _forgetful(name: str) -> Callable[..., Any]:
    change = getattr(list, name)

    @functools.wraps(change)
    def changed(self: CallbackList, *args: Any, **kwargs: Any) -> Any:
        self.resolved.clear()
        return change(self, *args, **kwargs)

    return changed


for _name in (
    *("append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse"),
    *("__setitem__", "__delitem__", "__iadd__", "__imul__"),
):
    setattr(CallbackList, _name, _forgetful(_name))


def _fires(event: str) -> Callable[..., TrainerControl]:
    """The handler's method for an event that takes no flag back."""

    def fire(
        self: CallbackHandler, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        return self.call_event(event, args, state, control, **kwargs)

    fire.__name__ = event
    fire.__qualname__ = f"CallbackHandler.{event}"
    fire.__doc__ = f"Fire `{event}`."
    return fire


class CallbackHandler:
    """Calls the callbacks of a run, in order, and takes their answers into the control.

    Per event, the methods of the callbacks that really implement it are looked up once: again after any change of
    `callbacks`, and when training begins. So an event that nobody listens to costs an empty loop.

    Args:
        callbacks: callbacks, or classes of them that can be called without arguments.
        model: handed to the callbacks, like the next three.
        processing_class: tokenizer, image processor, ...
        optimizer: may be set later.
        lr_scheduler: may be set later.
    """

    def __init__(
        self, callbacks: Iterable[Any], model: Any, processing_class: Any, optimizer: Any, lr_scheduler: Any
    ) -> None:
        self._listeners: dict[str, tuple[tuple[Any, Handler], ...]] = {}
        self._callbacks = CallbackList((), self._listeners)
        for callback in callbacks:
            self.add_callback(callback)
        self.model = model
        self.processing_class = processing_class
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.train_dataloader: Any = None
        self.eval_dataloader: Any = None
        if not any(_is_a(callback, "DefaultFlowCallback") for callback in self._callbacks):
            logger.warning("callbacks has no DefaultFlowCallback: nothing will log, evaluate, save or stop on schedule")

    @property
    def callbacks(self) -> list[Any]:
        """The callbacks in call order; may be changed in place or replaced."""
        return self._callbacks

    @callbacks.setter
    def callbacks(self, callbacks: Iterable[Any]) -> None:
        self._listeners.clear()
        self._callbacks = CallbackList(callbacks, self._listeners)

    @property
    def tokenizer(self) -> Any:
        """Older name of `processing_class`."""
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.processing_class = tokenizer

    @property
    def callback_list(self) -> str:
        """Class names of the callbacks, one per line."""
        return "\n".join(type(callback).__name__ for callback in self._callbacks)

    def add_callback(self, callback: Any) -> None:
        """Add a callback, or a new object of a callback class, at the end.

        Raises:
            TypeError: The object listens to no event and is no `TrainerCallback`: a function, for example.
        """
        callback = callback() if isinstance(callback, type) else callback
        if not any(name.startswith("on_") for name in dir(callback)):
            raise TypeError(
                f"callbacks has {callback!r}, which is no callback: give a TrainerCallback, or an object with one of its "
                "methods such as on_log"
            )
        if any(type(other) is type(callback) for other in self._callbacks):
            logger.warning("callbacks has a %s already; both will be called", type(callback).__name__)
        self._callbacks.append(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Remove and return `callback`, or the first object of the class `callback`; None when there is none."""
        for index, present in enumerate(self._callbacks):
            if isinstance(present, callback) if isinstance(callback, type) else present is callback:
                return self._callbacks.pop(index)
        return None

    def remove_callback(self, callback: Any) -> None:
        """Remove `callback`, or the first object of the class `callback`.

        Raises:
            ValueError: `callback` is an object that is not there. An absent class is no error.
        """
        if self.pop_callback(callback) is None and not isinstance(callback, type):
            raise ValueError(
                f"remove_callback({callback!r}): not among the callbacks: {', '.join(self.callback_list.split())}"
            )

    on_init_end = _fires("on_init_end")
    on_train_end = _fires("on_train_end")
    on_epoch_end = _fires("on_epoch_end")
    on_substep_end = _fires("on_substep_end")
    on_pre_optimizer_step = _fires("on_pre_optimizer_step")
    on_optimizer_step = _fires("on_optimizer_step")
    on_step_end = _fires("on_step_end")
    on_prediction_step = _fires("on_prediction_step")
    on_push_begin = _fires("on_push_begin")

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Take `should_training_stop` back, and fire `on_train_begin`."""
        control.should_training_stop = False
        self._listeners.clear()  # methods may have been put on a callback since
        return self.call_event("on_train_begin", args, state, control, **kwargs)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Take `should_epoch_stop` back, and fire `on_epoch_begin`."""
        control.should_epoch_stop = False
        return self.call_event("on_epoch_begin", args, state, control, **kwargs)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Take `should_log`, `should_evaluate` and `should_save` back, and fire `on_step_begin`."""
        control.should_log = False
        control.should_evaluate = False
        control.should_save = False
        return self.call_event("on_step_begin", args, state, control, **kwargs)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> TrainerControl:
        """Take `should_log` back, and fire `on_log`."""
        control.should_log = False
        return self.call_event("on_log", args, state, control, logs=logs, **kwargs)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, Any], **kwargs: Any
    ) -> TrainerControl:
        """Take `should_evaluate` back, and fire `on_evaluate`."""
        control.should_evaluate = False
        return self.call_event("on_evaluate", args, state, control, metrics=metrics, **kwargs)

    def on_predict(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, Any], **kwargs: Any
    ) -> TrainerControl:
        """Fire `on_predict`."""
        return self.call_event("on_predict", args, state, control, metrics=metrics, **kwargs)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Take `should_save` back, and fire `on_save`."""
        control.should_save = False
        return self.call_event("on_save", args, state, control, **kwargs)

    def call_event(
        self, event: str, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Call all who listen to `event`; any name will do.

        Returns:
            `control`, or the control that a callback put in its place.

        Raises:
            TypeError: a callback returned what is neither None, a control, nor a mapping of control flags.
        """
        listeners = self._listeners.get(event)
        if listeners is None:
            listeners = self._listeners[event] = tuple(_listening(self._callbacks, event))
        for callback, handle in listeners:
            answer = handle(
                args,
                state,
                control,
                model=self.model,
                processing_class=self.processing_class,
                tokenizer=self.processing_class,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
                train_dataloader=self.train_dataloader,
                eval_dataloader=self.eval_dataloader,
                **kwargs,
            )
            if answer is not None and answer is not control:
                control = _take(answer, control, callback, event)
        return control

    def abandon(self) -> None:
        """Tell our own callbacks that the run has ended by an exception, so that no half-drawn bar stays behind."""
        for callback in self._callbacks:
            if isinstance(callback, TrainerCallback):
                callback._abandon()


def _is_a(callback: Any, class_name: str) -> bool:
    return any(base.__name__ == class_name for base in type(callback).__mro__)


def _listening(callbacks: Iterable[Any], event: str) -> Iterable[tuple[Any, Handler]]:
    """Each callback that really implements `event`, with what to call."""
    for callback in callbacks:
        handle = getattr(callback, event, None)
        if callable(handle) and not _is_inherited_no_op(callback, event):
            yield callback, _with_known_keywords(handle)


def _is_inherited_no_op(callback: Any, event: str) -> bool:
    """True when the event comes from `TrainerCallback` itself, ours or the one of `transformers`."""
    if event in getattr(callback, "__dict__", ()):
        return False
    owner = next((base for base in type(callback).__mro__ if event in vars(base)), None)
    if owner is None or owner is TrainerCallback:
        return owner is not None
    return owner.__name__ == "TrainerCallback" and owner.__module__.partition(".")[0] == "transformers"


def _with_known_keywords(handle: Handler) -> Handler:
    """A handler without `**kwargs` is given only the keywords that it names."""
    try:
        parameters = inspect.signature(handle).parameters.values()
    except (TypeError, ValueError):  # implemented in C: nothing is known about it
        return handle
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return handle
    known = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}

    def call(*args: Any, **kwargs: Any) -> Any:
        return handle(*args, **{name: value for name, value in kwargs.items() if name in known})

    return call


def _take(answer: Any, control: TrainerControl, callback: Any, event: str) -> TrainerControl:
    """The control after a callback's answer."""
    where = f"{type(callback).__name__}.{event}"
    if isinstance(answer, Mapping):
        flags = answer
        if unknown := [key for key in answer if key not in CONTROL_FLAGS]:
            raise TypeError(
                f"{where} returned the unknown control flag {unknown[0]!r}; known: {', '.join(CONTROL_FLAGS)}"
            )
    elif isinstance(answer, TrainerControl):
        return answer
    elif all(hasattr(answer, flag) for flag in CONTROL_FLAGS):
        # A control of another library: its flags count, the object of the run stays ours.
        flags = {flag: getattr(answer, flag) for flag in CONTROL_FLAGS}
    else:
        raise TypeError(
            f"{where} returned {answer!r}, a {type(answer).__name__}; return None, the control, or a mapping of its flags"
        )
    for flag, value in flags.items():
        setattr(control, flag, bool(value))
    return control
