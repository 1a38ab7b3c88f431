"""`trainer.explain()`: the options, and what training would be."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import transformers

from mainspring import Trainer, TrainingArguments
from tests.helpers import data

OPTIONS: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 3}
RUN = "The run: 10 examples, 3 epochs, 6 updates of 6 samples (3 per device, accumulation 2), 3 trainable parameters.\n"


def explained(args: Any, **options: Any) -> str:
    out = io.StringIO()
    Trainer(torch.nn.Linear(2, 1), args, **options).explain(file=out)
    return out.getvalue()


def test_options_and_plan_are_printed() -> None:
    args = TrainingArguments("out", gradient_accumulation_steps=2, **OPTIONS)
    out = io.StringIO()
    args.explain(file=out)
    rows = data.Items([{"x": torch.zeros(2)}] * 10)
    assert explained(args, train_dataset=rows) == out.getvalue() + RUN
    assert explained(args) == out.getvalue()


def test_all_options_are_printed_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(torch.nn.Linear(2, 1), TrainingArguments("out", **OPTIONS))
    capsys.readouterr()
    trainer.explain(everything=True)
    assert "  weight_decay " in capsys.readouterr().out


def test_of_the_references_arguments_there_is_only_the_plan() -> None:
    args = transformers.TrainingArguments("out", gradient_accumulation_steps=2, **OPTIONS)
    rows = data.Items([{"x": torch.zeros(2)}] * 10)
    foreign = "transformers.training_args keeps no record of where its options came from.\n"
    assert explained(args, train_dataset=rows) == foreign + RUN
