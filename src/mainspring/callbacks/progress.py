"""What a run shows: a progress bar with the logs above it, or the logs alone."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

from mainspring.callbacks.base import TrainerCallback

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments
    from mainspring.state import TrainerControl, TrainerState

Logs = dict[str, Any]


def shown(logs: Logs, max_str_len: int | None = None) -> Logs:
    """Make a copy of `logs` for people: 4 significant digits, no `total_flos`, no text above `max_str_len` characters."""
    return {name: _shown(value, max_str_len) for name, value in logs.items() if name != "total_flos"}


def _shown(value: Any, max_str_len: int | None) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and max_str_len is not None and len(value) > max_str_len:
        return f"<{len(value)} characters; max_str_len={max_str_len} of ProgressCallback hides them>"
    return value


class _Nowhere(io.TextIOBase):
    """Where a bar draws when nobody could see it move; it still counts, and can be printed."""

    def write(self, text: str) -> int:
        """Forget the text."""
        return len(text)


def _can_draw() -> bool:
    """True for a terminal, and for a notebook, which draws without one."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def _open_bar(total: int | None, *, initial: int = 0, leave: bool = True) -> Any:
    from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

    if _can_draw():
        return tqdm(total=total, initial=initial, leave=leave, dynamic_ncols=True)
    return tqdm(total=total, initial=initial, leave=leave, file=_Nowhere())


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, AttributeError, NotImplementedError):  # what loaders without a length raise
        return None


class ProgressCallback(TrainerCallback):
    """Shows a bar of the updates, one of the evaluation below it, and each log as a line; first process only.

    The bars go to standard error, the logs to standard output. Where standard error is not a terminal, nothing is
    drawn over: each log is followed by one line that says how far the run is.

    Args:
        max_str_len: longer texts in the logs are not shown.
    """

    def __init__(self, max_str_len: int = 100) -> None:
        self.max_str_len = max_str_len
        self.training_bar: Any = None
        self.prediction_bar: Any = None
        self.current_step = 0
        self._draws = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar where the run stands."""
        self._abandon()  # an earlier run may have ended by an exception
        self._draws = _can_draw()
        self.current_step = state.global_step
        if state.is_world_process_zero:
            self.training_bar = _open_bar(state.max_steps, initial=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar on."""
        if self.training_bar is not None:
            self.training_bar.update(state.global_step - self.current_step)
            self.current_step = state.global_step

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Move the evaluation's bar on; its length is unknown when the data has none."""
        if not state.is_world_process_zero:
            return
        if self.prediction_bar is None:
            self.prediction_bar = _open_bar(_length(eval_dataloader), leave=self.training_bar is None)
        self.prediction_bar.update(1)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the evaluation's bar."""
        self._close_prediction_bar()

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Logs | None = None,
        **kwargs: Any,
    ) -> None:
        """Close the prediction's bar."""
        self._close_prediction_bar()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Logs | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the logs above the bar."""
        bar = self.training_bar
        if bar is None or logs is None:
            return
        line = str(shown(logs, self.max_str_len))
        if self._draws:
            bar.write(line)
        else:
            print(line, flush=True)  # noqa: T201  # both streams often go to one file: keep their lines in order
            print(bar, file=sys.stderr, flush=True)  # noqa: T201

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bars."""
        self._abandon()

    def _close_prediction_bar(self) -> None:
        bar, self.prediction_bar = self.prediction_bar, None
        if bar is not None:
            bar.close()

    def _abandon(self) -> None:
        self._close_prediction_bar()
        bar, self.training_bar = self.training_bar, None
        if bar is not None:
            bar.close()


class PrinterCallback(TrainerCallback):
    """Prints each log; the first process of each machine only. Used when the bars are switched off."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Logs | None = None,
        **kwargs: Any,
    ) -> None:
        """Print a copy of the logs; the logs themselves are left as they are."""
        if state.is_local_process_zero and logs is not None:
            print(shown(logs))  # noqa: T201
