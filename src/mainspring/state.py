"""Where a run stands and where it is going: state, control, plan and position. No tensor lives here.

* `TrainPlan`: what was decided before the first update; frozen.
* `TrainerState`: what callbacks read and `trainer_state.json` holds.
* `TrainerControl`: the five flags through which callbacks steer the loop.
* `Progress`: what exact resumption needs beyond `trainer_state.json`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar

from mainspring.errors import CheckpointError
from mainspring.jsonfile import write_json

logger = logging.getLogger(__name__)

FilePath = str | PathLike[str]
Stored = dict[str, Any]
"""What `ExportableState.state()` returns: `{"args": {...}, "attributes": {...}}`."""

ShortUpdates = Literal["step", "leak", "carry"]
"""What becomes of micro-batches at the end of an epoch that are fewer than an update takes; see `TrainPlan`."""

_Self = TypeVar("_Self", bound="ExportableState")


class ExportableState:
    """Mix-in of callbacks whose state is written into each checkpoint.

    Implement `state()`; both parts must be plain JSON values:

    >>> class Counter(ExportableState):
    ...     def __init__(self, start: int = 0):
    ...         self.start, self.seen = start, 0
    ...     def state(self):
    ...         return {"args": {"start": self.start}, "attributes": {"seen": self.seen}}
    """

    def state(self) -> Stored:
        """Return `{"args": constructor arguments, "attributes": what changed since}`."""
        raise NotImplementedError(f"{type(self).__name__} is an ExportableState: give it a method state()")

    @classmethod
    def from_state(cls: type[_Self], state: Stored) -> _Self:
        """Build a new object from what `state()` returned."""
        made = cls(**state["args"])
        for name, value in state["attributes"].items():
            setattr(made, name, value)
        return made


def is_exportable(thing: object) -> bool:
    """True for objects of `ExportableState`, of ours or of the class of that name in `transformers`."""
    return isinstance(thing, ExportableState) or any(base.__name__ == "ExportableState" for base in type(thing).__mro__)


def export_states(things: Iterable[Any]) -> dict[str, Any]:
    """Map class name to state; a class that occurs more than once maps to the list of its states, in order."""
    by_class: dict[str, list[Stored]] = {}
    for thing in things:
        if not is_exportable(thing):
            raise TypeError(f"stateful_callbacks: {type(thing).__name__} has no state to save; inherit ExportableState")
        by_class.setdefault(type(thing).__name__, []).append(thing.state())
    return {name: states if len(states) > 1 else states[0] for name, states in by_class.items()}


@dataclass
class TrainerControl(ExportableState):
    """The switches through which callbacks steer the loop; all start as False.

    Args:
        should_training_stop: end the run after this update. Taken back only when a run begins.
        should_epoch_stop: end the epoch after this update. Taken back when an epoch begins.
        should_save: write a checkpoint now. Taken back when it is written, and when an update begins.
        should_evaluate: evaluate now. Taken back when it is done, and when an update begins.
        should_log: log now. Taken back when it is done, and when an update begins.
    """

    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False

    def _new_step(self) -> None:
        self.should_save = False
        self.should_evaluate = False
        self.should_log = False

    def state(self) -> Stored:
        """The five flags as constructor arguments."""
        return {"args": {flag: getattr(self, flag) for flag in CONTROL_FLAGS}, "attributes": {}}


CONTROL_FLAGS: tuple[str, ...] = tuple(f.name for f in fields(TrainerControl))
"""Names of the five flags."""


@dataclass
class TrainerState:
    """What callbacks may read about a run; saved as `trainer_state.json`. One step is one optimizer update.

    Args:
        epoch: epochs done; the fraction is the part of the current epoch's batches.
        global_step: updates done.
        max_steps: updates planned.
        logging_steps: updates between two logs, a ratio being resolved (as for the next two).
        eval_steps: updates between two evaluations.
        save_steps: updates between two checkpoints.
        train_batch_size: samples per device and micro-batch.
        num_train_epochs: epochs that the loop will begin.
        num_input_tokens_seen: elements of the main input seen, counted on request.
        total_flos: estimated floating-point operations, forward and backward, of all processes.
        log_history: everything that was logged, with its `step`.
        best_metric: best value of `metric_for_best_model` so far.
        best_global_step: update at which it was reached.
        best_model_checkpoint: folder of that update's checkpoint.
        is_local_process_zero: the first process of this machine.
        is_world_process_zero: the first process of all.
        is_hyper_param_search: the run is one trial of a search.
        trial_name: name of the trial.
        trial_params: hyper-parameters of the trial.
        stateful_callbacks: states by class name; a list of `ExportableState` objects is turned into it.
    """

    epoch: float = 0
    global_step: int = 0
    max_steps: int = 0
    logging_steps: int = 500
    eval_steps: int = 500
    save_steps: int = 500
    train_batch_size: int | None = None
    num_train_epochs: int = 0
    num_input_tokens_seen: int = 0
    total_flos: float = 0
    log_history: list[dict[str, Any]] = field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, Any] | None = None
    stateful_callbacks: Any = None

    def __post_init__(self) -> None:
        # Older files and code written for the reference say None for "nothing yet".
        for name, nothing in (("epoch", 0), ("log_history", [])):
            if getattr(self, name) is None:
                setattr(self, name, nothing)
        if not isinstance(self.stateful_callbacks, dict):
            self.stateful_callbacks = export_states(self.stateful_callbacks or ())

    def collect(self, callbacks: Iterable[Any]) -> None:
        """Take the present state of the exportable ones among `callbacks`; states of absent classes are kept."""
        self.stateful_callbacks = {**self.stateful_callbacks, **export_states(filter(is_exportable, callbacks))}

    def save_to_json(self, json_path: FilePath) -> None:
        """Write the state to `json_path`: keys sorted, indented by 2, a newline at the end."""
        write_json(_content(self), json_path)

    @classmethod
    def load_from_json(cls, json_path: FilePath) -> TrainerState:
        """Read a state written by any generation: missing keys get their defaults, unknown ones are reported.

        Raises:
            CheckpointError: the file is not a JSON object.
        """
        return cls(**_read_json(cls, json_path))

    def compute_steps(self, args: Any, max_steps: int) -> None:
        """Set `logging_steps`, `eval_steps` and `save_steps`; below 1: that share of `max_steps`, rounded up."""
        for option in ("logging_steps", "eval_steps", "save_steps"):
            steps = getattr(args, option)
            if steps is not None:
                setattr(self, option, steps if steps >= 1 else math.ceil(max_steps * steps))

    def init_training_references(self, trainer: Any, max_steps: int, num_train_epochs: int, trial: Any) -> None:
        """Note the length of the run, which process this is, and the trial of a search."""
        current_trial = getattr(trainer, "_trial", None)
        if getattr(trainer, "hp_name", None) is not None and current_trial is not None:
            self.trial_name = trainer.hp_name(current_trial)
        self.trial_params = None if trial is None else _trial_params(trial)
        self.max_steps = max_steps
        self.num_train_epochs = num_train_epochs
        self.is_local_process_zero = trainer.is_local_process_zero()
        self.is_world_process_zero = trainer.is_world_process_zero()


def _trial_params(trial: Any) -> dict[str, Any]:
    """Hyper-parameters of a trial: a mapping, or an object with `params` as Optuna's."""
    params = trial if isinstance(trial, Mapping) else getattr(trial, "params", None)
    if not isinstance(params, Mapping):
        raise TypeError(f"trial={trial!r}: neither a mapping nor an object with a mapping `params`")
    return dict(params)


def restore_callbacks(callbacks: Iterable[Any], control: TrainerControl, stored: Mapping[str, Any]) -> list[str]:
    """Put the states of a checkpoint back into the live objects, which keep their identity.

    Args:
        callbacks: live callbacks, in their order; those without state are left alone.
        control: the run's control.
        stored: `TrainerState.stateful_callbacks`.

    Returns:
        Names of the stored classes of which a state found no live object.
    """
    live: dict[str, list[Any]] = {}
    for thing in (*callbacks, control):
        if is_exportable(thing):
            live.setdefault(type(thing).__name__, []).append(thing)
    missing = []
    for name, states in stored.items():
        states = states if isinstance(states, list) else [states]
        for thing, state in zip(live.get(name, []), states, strict=False):
            _restore(thing, state)
        if len(states) > len(live.get(name, [])):
            missing.append(name)
    return missing


def _restore(thing: Any, state: Stored) -> None:
    custom = getattr(type(thing).from_state, "__func__", None) is not ExportableState.from_state.__func__  # type: ignore[attr-defined]
    if custom or not all(hasattr(thing, name) for name in state["args"]):
        # How arguments become attributes is known to the class alone: let it build one, and take over what it holds.
        vars(thing).update(vars(type(thing).from_state(state)))
        return
    for name, value in {**state["args"], **state["attributes"]}.items():
        setattr(thing, name, value)


def state_dicts(callbacks: Iterable[Any]) -> dict[str, list[Any]]:
    """The states of callbacks that have `state_dict` and `load_state_dict`, as torch's modules do, by class name.

    That is the form for tensors, as a moving average of the weights; what JSON can hold may be an `ExportableState`.
    """
    found: dict[str, list[Any]] = {}
    for callback in _with_state_dicts(callbacks):
        found.setdefault(type(callback).__name__, []).append(callback.state_dict())
    return found


def load_state_dicts(callbacks: Iterable[Any], stored: Mapping[str, list[Any]]) -> None:
    """Give callbacks their states of `state_dicts` back; what has no counterpart is told."""
    waiting = {name: list(states) for name, states in stored.items()}
    for callback in _with_state_dicts(callbacks):
        states = waiting.get(type(callback).__name__)
        if states:
            callback.load_state_dict(states.pop(0))
    if lost := [name for name, states in waiting.items() if states]:
        logger.warning("the checkpoint holds states of callbacks that this run lacks: %s", ", ".join(lost))


def _with_state_dicts(callbacks: Iterable[Any]) -> list[Any]:
    methods = ("state_dict", "load_state_dict")
    return [thing for thing in callbacks if all(callable(getattr(thing, method, None)) for method in methods)]


@dataclass(frozen=True)
class TrainPlan:
    """What a run will do; decided before the first update and never changed.

    Args:
        num_train_epochs: epochs that the loop begins; `sys.maxsize` for data without a length.
        num_update_steps_per_epoch: updates of a full epoch; `max_steps` for data without a length.
        num_examples: samples of one epoch, over all processes.
        num_train_samples: samples of the run, over all processes; an estimate.
        total_train_batch_size: samples of a full update, over all processes.
        steps_in_epoch: micro-batches of an epoch in one process.
        max_steps: updates of the run.
        gradient_accumulation_steps: micro-batches of a full update in one process.
        has_length: whether the data could say how many batches it has.
        short_updates: what becomes of micro-batches at the end of an epoch that are fewer than an update takes. "step":
            they make a short update. "leak": so they do where the data has a length; else there is no step, and their
            gradients join the next one's. "carry": the next epoch completes the update, unless an epoch is shorter
            than an update.
        schedule_steps: updates of the run as the learning-rate schedule counts them, where they have changed their size;
            None: `max_steps`.
    """

    num_train_epochs: int
    num_update_steps_per_epoch: int
    num_examples: int
    num_train_samples: float
    total_train_batch_size: int
    steps_in_epoch: int
    max_steps: int
    gradient_accumulation_steps: int
    has_length: bool = True
    short_updates: ShortUpdates = "step"
    schedule_steps: int | None = None

    @property
    def steps_of_schedule(self) -> int:
        """Updates of the run, as the learning-rate schedule counts them."""
        return self.max_steps if self.schedule_steps is None else self.schedule_steps

    def of_epoch(self, batches: int) -> TrainPlan:
        """The plan, for an epoch of so many micro-batches in one process."""
        return self if batches == self.steps_in_epoch else replace(self, steps_in_epoch=batches)

    def updates_done(self, epoch: int, batches: int) -> int:
        """Updates that lie before micro-batch `batches` of `epoch`, a begun one among them."""
        whole = self.num_update_steps_per_epoch
        left = math.ceil((self.steps_in_epoch - batches) / self.gradient_accumulation_steps)
        at_its_beginning = (
            not batches and left >= whole
        )  # more: what is left over at the end makes no update of its own
        return epoch * whole if at_its_beginning else (epoch + 1) * whole - left

    def sizes_of_updates(self, done: int = 0, carried: int = 0) -> Iterator[int]:
        """Micro-batches of each update from micro-batch `done` of an epoch on: the last one takes what is left over.

        The first one completes an update that `carried` micro-batches of the epoch before belong to.
        """
        left = self.steps_in_epoch - done if self.has_length else sys.maxsize
        size = self.gradient_accumulation_steps - carried
        while left > 0:
            yield min(size, left)
            left -= size
            size = self.gradient_accumulation_steps

    @property
    def steps_when_short(self) -> bool:
        """Whether an update that the data does not fill steps all the same."""
        if self.short_updates == "carry":
            return self.has_length and self.steps_in_epoch < self.gradient_accumulation_steps
        return self.has_length or self.short_updates == "step"

    def parts_of_loss(self, micro_batches: int) -> int:
        """What a mean loss is divided by, in an update of which this epoch gives so many micro-batches."""
        return self.gradient_accumulation_steps if self.short_updates == "carry" else micro_batches

    def carried(self, gathered: int) -> int:
        """How many of the micro-batches gathered for an update wait for the next epoch to complete it."""
        return gathered % self.gradient_accumulation_steps if self.short_updates == "carry" else 0


def plan_training(
    *,
    num_batches: int | None,
    num_examples: int,
    gradient_accumulation_steps: int,
    num_train_epochs: float,
    max_steps: int,
    total_train_batch_size: int,
    short_updates: ShortUpdates = "step",
) -> TrainPlan:
    """Work out how many epochs and updates a run has.

    An epoch of L batches has U = ceil(L / G) updates, a short last one counting as one; where short ones are carried
    over, U = max(1, floor(L / G)). Without `max_steps` the run has ceil(num_train_epochs * U) updates; with it, as many
    epochs as they take.

    Args:
        num_batches: micro-batches of an epoch in one process; None when the data has no length.
        num_examples: samples of one epoch; not looked at when the data has no length.
        gradient_accumulation_steps: G.
        num_train_epochs: may be a fraction.
        max_steps: updates; negative means that the epochs decide.
        total_train_batch_size: samples of a full update, over all processes.
        short_updates: what becomes of micro-batches at the end of an epoch that are fewer than G; see `TrainPlan`.

    Raises:
        ValueError: the data gives no batch, or has no length and `max_steps` is not set.
    """
    group = gradient_accumulation_steps
    if group < 1:
        raise ValueError(f"gradient_accumulation_steps={group}: must be at least 1")
    if num_batches is None:
        return _plan_without_length(group, max_steps, total_train_batch_size, short_updates)
    if num_batches == 0:
        raise ValueError(
            "train_dataset gives no batch: it is empty, or smaller than one batch with dataloader_drop_last"
        )
    updates = max(1, num_batches // group) if short_updates == "carry" else math.ceil(num_batches / group)
    if max_steps > 0:
        epochs = math.ceil(max_steps / updates)
        samples: float = max_steps * total_train_batch_size
    else:
        epochs = math.ceil(num_train_epochs)
        samples = num_examples * num_train_epochs
    return TrainPlan(
        num_train_epochs=epochs,
        num_update_steps_per_epoch=updates,
        num_examples=num_examples,
        num_train_samples=samples,
        total_train_batch_size=total_train_batch_size,
        steps_in_epoch=num_batches,
        max_steps=math.ceil(num_train_epochs * updates) if max_steps < 0 else max_steps,
        gradient_accumulation_steps=group,
        short_updates=short_updates,
    )


def _plan_without_length(
    group: int, max_steps: int, total_train_batch_size: int, short_updates: ShortUpdates
) -> TrainPlan:
    if max_steps <= 0:
        raise ValueError(f"max_steps={max_steps}: the training data has no length; set max_steps to a positive number")
    samples = max_steps * total_train_batch_size
    return TrainPlan(
        num_train_epochs=sys.maxsize,  # the data is begun anew as often as the updates need
        num_update_steps_per_epoch=max_steps,
        num_examples=samples,
        num_train_samples=samples,
        total_train_batch_size=total_train_batch_size,
        steps_in_epoch=max_steps * group,
        max_steps=max_steps,
        gradient_accumulation_steps=group,
        has_length=False,
        short_updates=short_updates,
    )


@dataclass
class Progress:
    """Everything resumable that `trainer_state.json` has no key for.

    Args:
        epoch: index of the current epoch.
        batches: micro-batches of it that this process has done.
        samples: samples consumed since the run began, over all processes.
        epoch_samples: samples of this epoch consumed, over all processes.
        batch_size: samples per process and micro-batch with which they were counted.
        world_size: number of processes with which they were counted.
        window_loss: sum of the losses since the last log, as a mean over the processes.
        window_losses: that of each share of the data: a mean of sums is rounded otherwise than a sum of means.
        window_steps: updates since the last log.
        window_positions: positions of the batches since the last log that tell of their padding, over all processes.
        window_tokens: those of them that are no padding.
        total_loss: sum of the losses of all closed windows.
        first_step: update from which `total_loss` counts.
        examples: samples of one epoch; 0 where that is unknown.
        schedule_batch: samples of one update, over all processes, as the schedule counts them; 0 where that is unknown.
        order: what the number of batches means in the order of this epoch; empty where that is not of our making.
        pending: what was still to be done at this update: names of control flags.
        stops: what a callback had ended by then, the epoch under way or the training: names of control flags.
        grad_norm: gradient norm of the last update, which the next log may ask for; None where there was none.
        learning_rate: learning rate of the last update.
        numerics: what was counted of updates that went wrong since the last log, and what was decided on them.
        pieces: into how many pieces micro-batches are cut, for memory to hold them.
    """

    epoch: int = 0
    batches: int = 0
    samples: int = 0
    epoch_samples: int = 0
    batch_size: int = 0
    world_size: int = 1
    window_loss: float = 0
    window_losses: list[float] = field(default_factory=list)
    window_steps: int = 0
    window_positions: int = 0
    window_tokens: int = 0
    total_loss: float = 0
    first_step: int = 0
    examples: int = 0
    schedule_batch: int = 0
    order: dict[str, Any] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    grad_norm: float | None = None
    learning_rate: float | None = None
    numerics: dict[str, Any] = field(default_factory=dict)
    pieces: int = 1

    def to_json(self, path: FilePath) -> None:
        """Write to `path`; floats are written so that reading gives the same bits."""
        write_json(_content(self), path)

    @classmethod
    def from_json(cls, path: FilePath) -> Progress | None:
        """Read from `path`; None when there is no such file (a checkpoint of the reference).

        Raises:
            CheckpointError: the file is not a JSON object.
        """
        return cls(**_read_json(cls, path)) if Path(path).exists() else None


def _content(record: Any) -> dict[str, Any]:
    # Not dataclasses.asdict: it would copy the whole log history at every save.
    return {f.name: getattr(record, f.name) for f in fields(record)}


def read_object(path: FilePath) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        CheckpointError: The file holds no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); resume from another checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object; resume from another checkpoint")
    return content


def _read_json(record: type, path: FilePath) -> dict[str, Any]:
    """The values in the file at `path` for which `record` has a field."""
    content = read_object(path)
    known = {f.name for f in fields(record)}
    if unknown := sorted(content.keys() - known):
        logger.warning("%s: ignored what this version does not know: %s", path, ", ".join(unknown))
    return {name: value for name, value in content.items() if name in known}
