"""Some updates of a run under torch's profiler."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mainspring.callbacks.base import TrainerCallback
from mainspring.measuring.profiling import Profile, Updates
from mainspring.state import TrainerControl, TrainerState
from mainspring.utils.logging import get_logger

if TYPE_CHECKING:
    from mainspring.arguments.training_arguments import TrainingArguments

logger = get_logger(__name__)

FOLDER = "profile"
"""Where the files go, in `output_dir`."""


class ProfilerCallback(TrainerCallback):
    """Profiles a range of updates, with what comes between them: reading data, logs, evaluations and saves.

    Each process writes `profile/trace_rank<r>_updates_<range>.json.gz`, which chrome://tracing and Perfetto open, and
    `profile/operations_rank<r>_updates_<range>.txt`, a table of the operations that took longest. Where training ends
    early, the updates so far are written; an exception leaves no file.

    Args:
        start: Updates done when it begins.
        stop: Updates done when it ends.
    """

    def __init__(self, start: int, stop: int) -> None:
        self._wanted = Updates(start, stop)
        self._profile: Profile | None = None
        self._first = start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say so where the range is not in this run."""
        wanted = self._wanted
        if state.global_step >= wanted.stop:
            why = f"the run goes on when {state.global_step} updates are done"
        elif state.max_steps <= wanted.start:
            why = f"the run has {state.max_steps} updates"
        else:
            return
        logger.warning("profile_steps='%d:%d': nothing is profiled, because %s", wanted.start, wanted.stop, why)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin where the range does, or where a run that goes on comes into it."""
        if self._profile is None and self._wanted.start <= state.global_step < self._wanted.stop:
            self._profile, self._first = Profile(), state.global_step
        if self._profile is not None:
            self._profile.begin_update(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End where the range does."""
        if self._profile is None:
            return
        self._profile.end_update()
        if state.global_step >= self._wanted.stop:
            self._finish(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what there is, where training ends inside the range."""
        if self._profile is not None:
            logger.warning("profile_steps: training has ended before update %d", self._wanted.stop)
            self._finish(args, state)

    def _finish(self, args: TrainingArguments, state: TrainerState) -> None:
        profile, self._profile = self._profile, None
        assert profile is not None
        assert args.output_dir is not None  # it has a default
        profile.stop()
        name = f"rank{args.process_index}_updates_{Updates(self._first, state.global_step)}"
        for path in profile.write(os.path.join(args.output_dir, FOLDER), name):
            logger.info("profile_steps: wrote %s", path)

    def _abandon(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()
            logger.warning("profile_steps: an exception ended the run inside the range: no profile is written")
