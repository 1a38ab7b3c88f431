"""Stop a run whose metric no longer gets better."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mainspring.callbacks.base import TrainerCallback
from mainspring.errors import OptionError, Problem
from mainspring.state import ExportableState, Stored, TrainerControl, TrainerState

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments

logger = logging.getLogger(__name__)


def is_exhausted(callback: Any) -> bool:
    """Whether this is an early-stopping callback, ours or the reference's, whose patience is over."""
    counter = getattr(callback, "early_stopping_patience_counter", None)
    return counter is not None and bool(counter >= callback.early_stopping_patience)


class EarlyStoppingCallback(TrainerCallback, ExportableState):
    """Stops training when `metric_for_best_model` has not improved for some evaluations.

    Args:
        early_stopping_patience: evaluations in a row without improvement that end the run.
        early_stopping_threshold: an improvement counts when it is larger than this, in units of the metric; None is 0.
    """

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0) -> None:
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = early_stopping_threshold
        self.early_stopping_patience_counter = 0

    def check_metric_value(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metric_value: Any
    ) -> None:
        """Count an evaluation without improvement over `state.best_metric`, or start counting anew."""
        best = state.best_metric
        if best is None or self._improves(metric_value, best, bool(args.greater_is_better)):
            self.early_stopping_patience_counter = 0
        else:
            self.early_stopping_patience_counter += 1

    def _improves(self, value: Any, best: float, greater_is_better: bool) -> bool:
        better = value > best if greater_is_better else value < best
        return bool(better and abs(value - best) > (self.early_stopping_threshold or 0.0))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that there is a metric, and evaluations to read it from.

        Raises:
            OptionError: `metric_for_best_model` is not set, or `eval_strategy` is "no".
        """
        problems = []
        if args.metric_for_best_model is None:
            problems.append(Problem("metric_for_best_model", None, "EarlyStoppingCallback needs it", "name a metric"))
        if args.eval_strategy == "no":
            problems.append(
                Problem(
                    "eval_strategy", "no", "EarlyStoppingCallback needs evaluations", "set it to 'steps' or 'epoch'"
                )
            )
        if problems:
            raise OptionError(problems)
        if not args.load_best_model_at_end:
            logger.warning(
                "EarlyStoppingCallback: load_best_model_at_end=False, so the run will end with its last weights"
            )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at the metric, and stop when the patience is over."""
        metric = args.metric_for_best_model or ""
        key = metric if metric.startswith("eval_") else f"eval_{metric}"
        value = (metrics or {}).get(key)
        if value is None:  # normal with several evaluation sets: only one of them has the metric
            logger.warning("EarlyStoppingCallback: this evaluation has no %s; it does not count", key)
            return
        self.check_metric_value(args, state, control, value)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def state(self) -> Stored:
        """Patience and threshold as arguments, the counter as attribute."""
        return {
            "args": {
                "early_stopping_patience": self.early_stopping_patience,
                "early_stopping_threshold": self.early_stopping_threshold,
            },
            "attributes": {"early_stopping_patience_counter": self.early_stopping_patience_counter},
        }
