"""Options set on finished arguments: a Trainer looks at them when it is built, and again when it begins to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mainspring import Trainer, TrainingArguments
from mainspring.errors import NotAvailableError, OptionError
from tests.helpers import data, models

CHANGES = [
    ("hub_model_id", "mine", NotAvailableError),
    ("fsdp", True, OptionError),
    ("deepspeed", 3, OptionError),
    ("push_to_hub", True, NotAvailableError),
    ("report_to", "tensorboard", NotAvailableError),
    ("max_tokens_per_batch", 0, OptionError),
    ("debug", "underflow", OptionError),
    ("learning_rate", "fast", OptionError),
    ("learning_rate", "1e-3", OptionError),
    ("lr_scheduler_kwargs", '{"num_cycles": 2}', OptionError),
    ("compat", 4.37, OptionError),
    ("max_grad_norm", None, OptionError),
    ("logging_steps", 0, OptionError),
    ("bf16", "maybe", OptionError),
]


def trainer(args: TrainingArguments) -> Trainer:
    return Trainer(models.Regressor(), args, train_dataset=data.Items(data.points(8)))


def arguments(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, save_strategy="no", report_to="none")


@pytest.mark.parametrize(("name", "value", "error"), CHANGES)
def test_what_cannot_be_is_refused_when_the_trainer_is_built(
    name: str, value: Any, error: type[Exception], tmp_path: Path
) -> None:
    args = arguments(tmp_path)
    setattr(args, name, value)
    with pytest.raises(error, match=f"^{name}=") as caught:
        trainer(args)
    assert type(caught.value) is error
    assert getattr(args, name) is value


@pytest.mark.parametrize(("name", "value", "error"), CHANGES[:1] + CHANGES[7:8])
def test_and_when_it_trains(name: str, value: Any, error: type[Exception], tmp_path: Path) -> None:
    run = trainer(arguments(tmp_path))
    setattr(run.args, name, value)
    with pytest.raises(error, match=f"^{name}="):
        run.train()
    assert run.state.global_step == 0


def test_all_is_said_at_once(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args.learning_rate = "fast"
    args.fp16 = args.bf16 = True
    args.hub_model_id = "mine"
    with pytest.raises(OptionError) as caught:
        trainer(args)
    assert {"learning_rate", "hub_model_id"} < {problem.option for problem in caught.value.problems}
    assert len(caught.value.problems) == 3


def test_what_can_be_is_left_as_it_is(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args.report_to, args.debug, args.eval_strategy, args.max_grad_norm = "none", "", "no", 1
    before = dict(vars(args))
    trainer(args).train()
    assert {name: vars(args)[name] for name in before if not name.startswith("_")} == {
        name: value for name, value in before.items() if not name.startswith("_")
    }
