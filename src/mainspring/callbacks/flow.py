"""The policy of the loop: when to log, evaluate, save and stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mainspring.callbacks.base import TrainerCallback

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments
    from mainspring.state import TrainerControl, TrainerState


class DefaultFlowCallback(TrainerCallback):
    """Sets the control flags that the strategies of the arguments ask for.

    After an update: whatever is due every so many steps. After the last update: also a final evaluation and a final
    checkpoint for the "steps" strategies. After an epoch: the "epoch" strategies. Nothing is evaluated before
    `eval_delay`, in steps or epochs as the strategy counts. The "best" save strategy is decided after an evaluation,
    by the Trainer.

    Args:
        final_events: Whether the last update is evaluated and saved although it is not due.
    """

    final_events = True  # for subclasses whose constructors do not call this one

    def __init__(self, final_events: bool = True) -> None:
        self.final_events = final_events

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """What is due at this update, and the end of the run at `state.max_steps`."""
        # Read anew each time: users change args and state during a run. Strategies are strings, so == is cheap.
        step = state.global_step
        last = step >= state.max_steps
        final = last and self.final_events
        if (step == 1 and args.logging_first_step) or (
            args.logging_strategy == "steps" and _due(step, state.logging_steps)
        ):
            control.should_log = True
        if args.eval_strategy == "steps" and step >= args.eval_delay and (final or _due(step, state.eval_steps)):
            control.should_evaluate = True
        if args.save_strategy == "steps" and (final or _due(step, state.save_steps)):
            control.should_save = True
        if last:
            control.should_training_stop = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """What is due after each epoch."""
        if args.logging_strategy == "epoch":
            control.should_log = True
        if args.eval_strategy == "epoch" and state.epoch >= args.eval_delay:
            control.should_evaluate = True
        if args.save_strategy == "epoch":
            control.should_save = True
        return control


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
