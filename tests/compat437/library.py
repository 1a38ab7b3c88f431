"""Mainspring in the scenarios."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import mainspring.trainer
from mainspring import EarlyStoppingCallback, Trainer, TrainingArguments
from mainspring.arguments.own import own_options
from mainspring.callbacks import PrinterCallback
from tests.compat437 import scenarios
from tests.helpers.sides import forget_process_state


class Quiet(Trainer):
    def __init__(self, **inputs: Any) -> None:
        super().__init__(**inputs)
        self.remove_callback(PrinterCallback)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    forget_process_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scenarios are written in older spellings
        return TrainingArguments(str(folder), **{"train_sampling_strategy": "sequential", "compat": "4.37", **options})


MAINSPRING = scenarios.Library(Quiet, arguments, EarlyStoppingCallback, mainspring.trainer)


@contextlib.contextmanager
def with_row(**values: Any) -> Iterator[None]:
    """Trainers made in this context have other values in some rows of the table of behaviours."""

    def changed(args: Any) -> Any:
        return dataclasses.replace(own_options(args), **values)

    with mock.patch.object(mainspring.trainer, "own_options", changed):
        yield
